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

/// <summary><c>struct page_region</c>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct PageRegion
{
    public ulong start;
    public ulong end;
    public ulong categories;
}

/// <summary>The PAGEMAP_SCAN ioctl of <c>/proc/PID/pagemap</c> (Linux 6.7 and later).</summary>
internal static unsafe partial class Pagemap
{
    public const uint PAGEMAP_SCAN = 0xC0606610;
    public const ulong PAGE_IS_WRITTEN = 1 << 1;
    public const ulong PAGE_IS_PRESENT = 1 << 3;
    public const ulong PAGE_IS_SWAPPED = 1 << 4;
    public const ulong PM_SCAN_WP_MATCHING = 1 << 0;
    public const ulong PM_SCAN_CHECK_WPASYNC = 1 << 1;

    // What pagemap says of a page, in 64 bits (Documentation/admin-guide/mm/pagemap.rst; no header has names for it).
    public const ulong SoftDirty = 1UL << 55;
    public const ulong Protected = 1UL << 57;
    public const ulong Swapped = 1UL << 62;
    public const ulong Present = 1UL << 63;

    /// <summary>Whether the kernel notes writes as soft-dirty, tried on a page of this process, whose marks are all reset by that. Without CONFIG_MEM_SOFT_DIRTY the reset succeeds, and no page is ever marked.</summary>
    public static bool HasSoftDirty()
    {
        var page = (byte*)NativeMemory.AlignedAlloc((nuint)HostPage.Size, (nuint)HostPage.Size);
        try
        {
            using var pagemap = File.OpenHandle("/proc/self/pagemap");
            using var marks = File.OpenHandle("/proc/self/clear_refs", FileMode.Open, FileAccess.Write);
            Volatile.Write(ref *page, 1);
            ResetSoftDirty(marks);
            var before = EntryOf(pagemap, (ulong)page);
            Volatile.Write(ref *page, 2);
            return (before & SoftDirty) == 0 && (EntryOf(pagemap, (ulong)page) & SoftDirty) != 0;
        }
        finally
        {
            NativeMemory.AlignedFree(page);
        }
    }

    /// <summary>Resets the soft-dirty marks of all memory of a process.</summary>
    /// <param name="marks">Its clear_refs, open for writing.</param>
    /// <exception cref="IOException">The kernel refuses.</exception>
    public static void ResetSoftDirty(Microsoft.Win32.SafeHandles.SafeFileHandle marks) => RandomAccess.Write(marks, "4"u8, 0);

    /// <summary>Reads what pagemap says of pages from an address on. The number of entries, 0 where the process has no memory any more, or the negated error number.</summary>
    /// <param name="pagemap">The process's pagemap.</param>
    /// <param name="address">The address of the first page.</param>
    /// <param name="entries">Receives an entry for each page of the host.</param>
    public static nint TryRead(SafeHandle pagemap, ulong address, Span<ulong> entries)
    {
        var count = PositionedIo.TryRead(pagemap, MemoryMarshal.AsBytes(entries), address / HostPage.Size * sizeof(ulong));
        return count < 0 ? count : count / sizeof(ulong);
    }

    private static ulong EntryOf(SafeHandle pagemap, ulong address)
    {
        Span<ulong> entry = [0];
        return TryRead(pagemap, address, entry) == 1 ? entry[0] : 0;
    }

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

    /// <summary>
    /// Finds the next ranges of a process's pages that were written since they were write-protected. Returns how many there are, or
    /// the negated error number; <paramref name="next"/> is where to continue, <paramref name="end"/> at the end.
    /// </summary>
    /// <param name="pagemap">The process's pagemap.</param>
    /// <param name="start">The first address.</param>
    /// <param name="end">The address after the last.</param>
    /// <param name="regions">Receives the ranges.</param>
    /// <param name="protect">Whether the kernel write-protects the pages that it finds in the same step, so that no write is missed between.</param>
    /// <param name="next">Where to continue.</param>
    public static long TryScanWritten(SafeHandle pagemap, ulong start, ulong end, Span<PageRegion> regions, bool protect, out ulong next) => Scan(pagemap, regions, new PmScanArg
    {
        flags = PM_SCAN_CHECK_WPASYNC | (protect ? PM_SCAN_WP_MATCHING : 0),
        start = start,
        end = end,
        category_mask = PAGE_IS_WRITTEN,
        // Otherwise a page that was never present counts as written.
        category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask = PAGE_IS_WRITTEN,
    }, out next);

    /// <summary>
    /// The same for pages that were written, or of which nothing is left, not even the mark of their protection: what was given back (MADV_DONTNEED, a punched hole) since
    /// it was protected, or was not protected. Other ranges are among them, which <see cref="IsChanged"/> tells apart.
    /// </summary>
    public static long TryScanChanged(SafeHandle pagemap, ulong start, ulong end, Span<PageRegion> regions, bool protect, out ulong next) => Scan(pagemap, regions, new PmScanArg
    {
        flags = PM_SCAN_CHECK_WPASYNC | (protect ? PM_SCAN_WP_MATCHING : 0),
        start = start,
        end = end,
        // Written, or not present. What is not present and protected counts as swapped: no mask leaves that out.
        category_inverted = PAGE_IS_PRESENT,
        category_anyof_mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT,
        return_mask = PAGE_IS_WRITTEN | PAGE_IS_SWAPPED,
    }, out next);

    /// <summary>Whether <see cref="TryScanChanged"/> gave a range because it was written or given back.</summary>
    public static bool IsChanged(PageRegion region) => region.categories != PAGE_IS_SWAPPED;

    /// <summary>
    /// The same for pages that are there, written or not. Of shared memory only those that are mapped: where one is not, the kernel keeps no more than that it was protected, which
    /// it tells as swapped, also when the page has gone.
    /// </summary>
    public static long TryScanPresent(SafeHandle pagemap, ulong start, ulong end, bool isShared, Span<PageRegion> regions, out ulong next) => Scan(pagemap, regions, new PmScanArg
    {
        start = start,
        end = end,
        category_anyof_mask = isShared ? PAGE_IS_PRESENT : PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask = PAGE_IS_PRESENT,
    }, out next);

    private static long Scan(SafeHandle pagemap, Span<PageRegion> regions, PmScanArg argument, out ulong next)
    {
        using var lease = new DescriptorLease(pagemap);
        fixed (PageRegion* vector = regions)
        {
            argument.size = (ulong)sizeof(PmScanArg);
            argument.vec = (ulong)vector;
            argument.vec_len = (ulong)regions.Length;
            long count = ioctl(lease.Number, PAGEMAP_SCAN, &argument);
            var error = count < 0 ? Marshal.GetLastPInvokeError() : 0;
            // A vector that is not full has all ranges up to the end.
            next = count < regions.Length ? argument.end : argument.walk_end;
            return count < 0 ? -error : count;
        }
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int ioctl(int fd, nuint request, void* argument);
}
