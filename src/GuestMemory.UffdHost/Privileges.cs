using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>As whom the handler's processes run, and which capabilities they keep.</summary>
internal sealed class Privileges
{
    private readonly UserAccount? _user;
    private readonly ulong _kept;

    private Privileges(UserAccount? user, ulong kept)
    {
        _user = user;
        _kept = kept;
    }

    /// <summary>The user as whom they are to run; null where they run as the one that started the handler.</summary>
    /// <exception cref="GuestMemoryException">UserNotFound; UserDenied: this process may not change its user.</exception>
    public static UserAccount? UserOf(UffdHandlerOptions options)
    {
        if (options.User is not { } name) return null;
        var user = Users.FindAccount(name);
        if (user.User == Users.Current) return user;
        var needed = Capabilities.SetOf(Capabilities.CAP_SETUID) | Capabilities.SetOf(Capabilities.CAP_SETGID);
        return (Capabilities.Current & needed) == needed ? user
            : throw new GuestMemoryException(GuestMemoryError.UserDenied, $"A handler that user {Users.Current} starts cannot run as '{name}': only root's can. Start it as root, or as that user.");
    }

    /// <summary>What serving needs in all that comes.</summary>
    /// <param name="options">The handler's.</param>
    /// <param name="user">As whom they are to run.</param>
    /// <param name="images">What is served.</param>
    public static Privileges Of(UffdHandlerOptions options, UserAccount? user, IEnumerable<ServedImage> images)
    {
        ulong kept = 0;
        // VMMs are those of other users. The filter lets a worker send that one signal to the processes alone of which it was given descriptors.
        // Where they may connect, any of them may be ordered to be killed.
        if (options.OnError == UffdOnError.Kill || options.AllowUser.Count + options.AllowGroup.Count > 0 || (options.OnError == UffdOnError.Poison && !CanPoison())) kept |= Capabilities.SetOf(Capabilities.CAP_KILL);
        // Of a file of another user the kernel tells only who has this whether it is in memory (mincore).
        if (images.Any(image => image.Files?.HasFileOfOthers(user?.User ?? Users.Current) == true)) kept |= Capabilities.SetOf(Capabilities.CAP_FOWNER);
        return new Privileges(user, kept);
    }

    /// <summary>Has the calling thread be a worker: whatever it starts is one.</summary>
    /// <exception cref="SyscallException">It cannot change.</exception>
    public void DropForWorker() => Capabilities.Drop(_kept, _user, wholeProcess: false);

    /// <summary>Has this process go on as the user that was asked for, from the thread that starts workers; nothing where none was.</summary>
    /// <exception cref="SyscallException">It cannot change.</exception>
    public void DropForSupervisor()
    {
        if (_user is not null) Capabilities.Drop(_kept, _user, wholeProcess: true);
    }

    private static bool CanPoison() => Userfaultfd.TryProbe(out var features) == 0 && (features & Userfaultfd.UFFD_FEATURE_POISON) != 0;
}
