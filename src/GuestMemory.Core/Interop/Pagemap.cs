using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct pm_scan_arg</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct PmScanArg
{
    public ulong size;
    public ulong flags;
    public ulong start;
    public ulong end;
    public ulong walk_end;
    public ulong vec;
    public ulong vec_len;
    public ulong max_pages;
    public ulong category_inverted;
    public ulong category_mask;
    public ulong category_anyof_mask;
    public ulong return_mask;
}

/// <summary>The PAGEMAP_SCAN ioctl of <c>/proc/PID/pagemap</c> (Linux 6.7 and later).</summary>
internal static unsafe partial class Pagemap
{
    public const uint PAGEMAP_SCAN = 0xC0606610;
    public const ulong PAGE_IS_PRESENT = 1 << 3;

    /// <summary>Whether the kernel knows the ioctl; 0 or the error number.</summary>
    public static int TryProbe()
    {
        using var pagemap = File.OpenHandle("/proc/self/pagemap");
        using var lease = new DescriptorLease(pagemap);
        var range = stackalloc ulong[3];
        var argument = new PmScanArg
        {
            size = (ulong)sizeof(PmScanArg),
            start = (ulong)range & ~(HostPage.Size - 1),
            vec = (ulong)range,
            vec_len = 1,
            category_mask = PAGE_IS_PRESENT,
            return_mask = PAGE_IS_PRESENT,
        };
        argument.end = argument.start + HostPage.Size;
        return ioctl(lease.Number, PAGEMAP_SCAN, &argument) >= 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int ioctl(int fd, nuint request, void* argument);
}
