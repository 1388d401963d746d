using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>Write-protects memory whose export begins.</summary>
internal static class LiveProtection
{
    /// <summary>The bytes that are protected at once: the kernel lets no other thread of the VM change its mappings meanwhile, a millisecond.</summary>
    public const ulong Piece = 32 << 20;

    /// <summary>Protects the pages that are marked.</summary>
    /// <param name="uffd">The userfaultfd.</param>
    /// <param name="regions">Where the pages lie.</param>
    /// <param name="marks">A bit for each page.</param>
    /// <param name="again">Called while the kernel refuses, since an event waits to be read.</param>
    /// <exception cref="GuestMemoryException">LiveFailed: the kernel lacks the memory for it.</exception>
    public static void ProtectMarked(int uffd, ReadOnlySpan<UffdVmRegion> regions, PageBits marks, Action again)
    {
        foreach (var region in regions) ProtectMarked(uffd, region, region.FirstPage, region.PageCount, marks, again);
    }

    /// <summary>The same of some pages of a region.</summary>
    /// <exception cref="GuestMemoryException">LiveFailed: the kernel lacks the memory for it.</exception>
    public static void ProtectMarked(int uffd, UffdVmRegion region, ulong first, ulong count, PageBits marks, Action again)
    {
        var end = first + count;
        for (var page = marks.Next(first, end, set: true); page < end; page = marks.Next(page, end, set: true))
        {
            var next = marks.Next(page, end, set: false);
            ProtectRange(uffd, region.AddressOf(page), (next - page) * HostPage.Size, region.PageSize, again);
            page = next;
        }
    }

    /// <summary>Protects a range, and leaves out what is not mapped or not registered any more.</summary>
    /// <exception cref="GuestMemoryException">LiveFailed: the kernel lacks the memory for it.</exception>
    public static void ProtectRange(int uffd, ulong start, ulong length, ulong pageSize, Action again)
    {
        int error;
        while ((error = Userfaultfd.TryProtect(uffd, start, length)) == Errno.EAGAIN) again();
        if (error == Errno.ENOMEM) throw new SyscallException("ioctl(UFFDIO_WRITEPROTECT)", error, "Write-protecting the VM's memory", GuestMemoryError.LiveFailed, "The kernel has no memory left for page tables.");
        if (error is 0 or Errno.ESRCH || length <= pageSize) return;
        // A part is not there, and it ended there.
        for (ulong done = 0; done < length; done += pageSize) ProtectRange(uffd, start + done, pageSize, pageSize, again);
    }
}
