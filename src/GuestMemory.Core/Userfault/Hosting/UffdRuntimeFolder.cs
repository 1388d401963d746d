using System.Globalization;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Where the handlers of a user have their control sockets and logs: PID.sock and PID.log, in a folder that only the user can
/// enter. GUESTMEMORY_RUNTIME_DIR names it; else it is /run/guestmemory for root, "guestmemory" in $XDG_RUNTIME_DIR or
/// /run/user/UID for others, and where none of these is to be had /tmp/guestmemory-UID.
/// </summary>
internal static class UffdRuntimeFolder
{
    public const string Variable = "GUESTMEMORY_RUNTIME_DIR";

    /// <summary>The folder for a new handler, made where it is missing.</summary>
    /// <exception cref="GuestMemoryException">InsecureDirectory: there is none that belongs to this user alone.</exception>
    public static string Make()
    {
        foreach (var folder in Candidates())
        {
            _ = FileStatus.TryMakeDirectory(folder, 0b111_000_000);
            if (IsOurs(folder)) return folder;
        }

        throw new GuestMemoryException(GuestMemoryError.InsecureDirectory,
            $"None of {string.Join(", ", Candidates())} can be created, or belongs to this user alone (mode 0700). Name a folder with {Variable}, or remove the one that has the wrong owner or mode.");
    }

    /// <summary>The control sockets of all handlers of this user, those that were left behind among them.</summary>
    public static IEnumerable<string> Sockets() => Candidates().Distinct(StringComparer.Ordinal)
        .Where(IsOurs)
        .SelectMany(static folder => Directory.EnumerateFiles(folder, "*.sock"))
        .Where(static path => ProcessOf(path) is not null);

    public static string SocketOf(string folder, int process) => Path.Combine(folder, string.Create(CultureInfo.InvariantCulture, $"{process}.sock"));

    public static string LogOf(string controlPath) => Path.ChangeExtension(controlPath, ".log");

    /// <summary>
    /// Takes a file away. A handler that runs as another user by now may not: its socket goes with the next look at the folder, its log stays.
    /// </summary>
    public static void Remove(string path)
    {
        try
        {
            File.Delete(path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // The name stays.
        }
    }

    /// <summary>The process that a control socket is named after.</summary>
    public static int? ProcessOf(string controlPath) =>
        int.TryParse(Path.GetFileNameWithoutExtension(controlPath), NumberStyles.None, CultureInfo.InvariantCulture, out var process) ? process : null;

    private static IEnumerable<string> Candidates()
    {
        if (Environment.GetEnvironmentVariable(Variable) is { Length: > 0 } chosen)
        {
            yield return Path.GetFullPath(chosen);
            yield break;
        }

        var user = Users.Current;
        // Root's shells agree on nothing else: a service has no XDG_RUNTIME_DIR, a login has.
        if (user == 0) yield return "/run/guestmemory";
        if (Environment.GetEnvironmentVariable("XDG_RUNTIME_DIR") is { } runtime && Path.IsPathRooted(runtime)) yield return Path.Combine(runtime, "guestmemory");
        yield return string.Create(CultureInfo.InvariantCulture, $"/run/user/{user}/guestmemory");
        yield return string.Create(CultureInfo.InvariantCulture, $"/tmp/guestmemory-{user}");
    }

    /// <summary>A folder, no link, of this user, that no other user may enter.</summary>
    private static bool IsOurs(string folder) =>
        FileStatus.TryGet(folder, out var status) == 0
        && (status.stx_mode & FileStatus.S_IFMT) == FileStatus.S_IFDIR
        && status.stx_uid == Users.Current
        && (status.stx_mode & 0b111_111) == 0;
}
