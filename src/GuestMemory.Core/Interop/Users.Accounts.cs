using System.Globalization;
using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <content>A user with its groups.</content>
internal static unsafe partial class Users
{
    private const int MaxGroups = 65536;

    /// <summary>A user given by name or number, with its groups.</summary>
    /// <exception cref="GuestMemoryException">UserNotFound; also for a number without an entry, whose group is not known.</exception>
    public static UserAccount FindAccount(string user)
    {
        var buffer = stackalloc byte[16384];
        Passwd entry;
        Passwd* found;
        var error = uint.TryParse(user, NumberStyles.None, CultureInfo.InvariantCulture, out var number)
            ? getpwuid_r(number, &entry, buffer, 16384, &found)
            : getpwnam_r(user, &entry, buffer, 16384, &found);
        if (error != 0 || found is null)
            throw new GuestMemoryException(GuestMemoryError.UserNotFound, $"There is no user '{user}' on this host as whom the handler could run. Give one of 'getent passwd'.");
        var count = 64;
        while (true)
        {
            var groups = new uint[count];
            fixed (uint* list = groups)
            {
                if (getgrouplist((byte*)entry.pw_name, entry.pw_gid, list, &count) >= 0) return new UserAccount(entry.pw_uid, entry.pw_gid, groups[..count]);
            }

            // It says how many there are.
            if (count <= groups.Length) count = groups.Length * 2;
            if (count > MaxGroups) throw new GuestMemoryException(GuestMemoryError.UserNotFound, $"The user '{user}' has more than {MaxGroups} groups.");
        }
    }

    [LibraryImport("libc")]
    private static partial int getpwuid_r(uint uid, Passwd* pwd, byte* buf, nuint buflen, Passwd** result);

    [LibraryImport("libc")]
    private static partial int getgrouplist(byte* user, uint group, uint* groups, int* ngroups);
}
