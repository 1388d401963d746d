using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct passwd</c>, the parts used.</summary>
[StructLayout(LayoutKind.Explicit, Size = 48)]
internal struct Passwd
{
    [FieldOffset(0)] public nint pw_name;
    [FieldOffset(16)] public uint pw_uid;
    [FieldOffset(20)] public uint pw_gid;
}

/// <summary>The user of this process, and a user's number by name.</summary>
internal static unsafe partial class Users
{
    /// <summary>The effective user of this process.</summary>
    public static uint Current => geteuid();

    /// <summary>The number of a user given by name or by number.</summary>
    /// <exception cref="GuestMemoryException">UserNotFound.</exception>
    public static uint Find(string user)
    {
        if (uint.TryParse(user, NumberStyles.None, CultureInfo.InvariantCulture, out var number)) return number;
        var buffer = stackalloc byte[16384];
        Passwd entry;
        Passwd* found;
        var error = getpwnam_r(user, &entry, buffer, 16384, &found);
        return error == 0 && found is not null
            ? entry.pw_uid
            : throw new GuestMemoryException(GuestMemoryError.UserNotFound, $"There is no user '{user}' on this host. Give a name of 'getent passwd' or a user id.");
    }

    [LibraryImport("libc")]
    private static partial uint geteuid();

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int getpwnam_r(string name, Passwd* pwd, byte* buf, nuint buflen, Passwd** result);
}
