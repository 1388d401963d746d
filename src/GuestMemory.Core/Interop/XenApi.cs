using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Interop;

/// <summary>
/// The ioctls of a Xen domain's devices: privcmd maps frames of other domains (<c>xen/privcmd.h</c>), gntdev maps pages that other domains
/// grant (<c>xen/gntdev.h</c>).
/// </summary>
internal static unsafe partial class XenApi
{
    public const uint IOCTL_PRIVCMD_MMAPBATCH_V2 = 0x00205004;
    public const uint IOCTL_GNTDEV_MAP_GRANT_REF = 0x00184700;
    public const uint IOCTL_GNTDEV_UNMAP_GRANT_REF = 0x00104701;

    /// <summary>One ioctl; 0 or the error number.</summary>
    public static int TryIoctl(SafeHandle device, uint request, void* argument)
    {
        using var lease = new DescriptorLease(device);
        while (ioctl(lease.Number, request, argument) < 0)
        {
            var error = Marshal.GetLastPInvokeError();
            if (error != Errno.EINTR) return error;
        }

        return 0;
    }

    /// <summary>Opens a device for reading and writing; null with the error number.</summary>
    public static SafeFileHandle? TryOpen(string path, out int error)
    {
        var number = open(path, Userfaultfd.O_RDWR | Userfaultfd.O_CLOEXEC);
        error = number < 0 ? Marshal.GetLastPInvokeError() : 0;
        return number < 0 ? null : new SafeFileHandle(number, ownsHandle: true);
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int ioctl(int fd, nuint request, void* argument);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string pathname, int flags);
}
