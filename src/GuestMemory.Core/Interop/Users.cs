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

/// <summary><c>struct group</c>, the parts used.</summary>
[StructLayout(LayoutKind.Explicit, Size = 32)]
internal struct Group
{
    [FieldOffset(0)] public nint gr_name;
    [FieldOffset(16)] public uint gr_gid;
}

/// <summary>The user of this process, and numbers of users and groups by name.</summary>
internal static unsafe partial class Users
{
    private const nuint MaxGroupBytes = 16 << 20;

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

    /// <summary>The number of a group given by name or by number.</summary>
    /// <exception cref="GuestMemoryException">GroupNotFound.</exception>
    public static uint FindGroup(string group)
    {
        if (uint.TryParse(group, NumberStyles.None, CultureInfo.InvariantCulture, out var number)) return number;
        // The names of its members are among what is found.
        for (nuint size = 16384; size <= MaxGroupBytes; size *= 4)
        {
            var buffer = new byte[size];
            Group entry;
            Group* found;
            int error;
            fixed (byte* pointer = buffer) error = getgrnam_r(group, &entry, pointer, size, &found);
            if (error == Errno.ERANGE) continue;
            if (error == 0 && found is not null) return entry.gr_gid;
            break;
        }

        throw new GuestMemoryException(GuestMemoryError.GroupNotFound, $"There is no group '{group}' on this host. Give a name of 'getent group' or a group id.");
    }

    [LibraryImport("libc")]
    private static partial uint geteuid();

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int getgrnam_r(string name, Group* grp, byte* buf, nuint buflen, Group** result);

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int getpwnam_r(string name, Passwd* pwd, byte* buf, nuint buflen, Passwd** result);
}
