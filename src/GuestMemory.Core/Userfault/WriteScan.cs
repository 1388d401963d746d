using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>What a VM wrote or gave back, as its state and, where the kernel resolves its write faults by itself, the kernel know it.</summary>
internal static class WriteScan
{
    /// <summary>A bitmap for each region; addresses are offsets in the image.</summary>
    /// <param name="state">The VM's state.</param>
    /// <param name="regions">Its regions, in the order that its state has them.</param>
    /// <param name="userfaultfd">Its userfaultfd.</param>
    /// <param name="processId">The VMM.</param>
    /// <param name="awaitRead">
    /// Waits for a read of events that is under way; without one a removal that ended just now may still be missing.
    /// </param>
    /// <exception cref="GuestMemoryException">UffdUnsupported: the kernel does not say what was written.</exception>
    public static IEnumerable<DirtyBitmap> Of(UffdVmState state, IReadOnlyList<UffdVmRegion> regions, SafeDescriptor userfaultfd, int processId, Action? awaitRead = null)
    {
        var isAsync = IsAsync(userfaultfd);
        foreach (var region in regions)
        {
            var words = new ulong[(int)((region.PageCount + 63) / 64)];
            // First: the kernel forgets a written page when it is removed, and that is on record by then.
            if (isAsync) Scan(region, words, processId);
            awaitRead?.Invoke();
            for (ulong page = 0; page < region.PageCount; page++)
            {
                var number = region.FirstPage + page;
                if (state.Written.IsSet(number) || state.Removed.IsSet(number)) words[page >> 6] |= 1UL << (int)(page & 63);
            }

            yield return new DirtyBitmap(region.Offset, region.Size, HostPage.Size, words, $"process {processId}, offsets in the image");
        }
    }

    private static bool IsAsync(SafeDescriptor userfaultfd)
    {
        using var lease = new DescriptorLease(userfaultfd);
        return (Userfaultfd.FeaturesOf(lease.Number) & Userfaultfd.UFFD_FEATURE_WP_ASYNC) != 0;
    }

    private static void Scan(UffdVmRegion region, ulong[] words, int processId)
    {
        using var pagemap = OpenPagemap(processId);
        var found = new PageRegion[256];
        for (var at = region.Base; at < region.End;)
        {
            var count = Pagemap.TryScanWritten(pagemap, at, region.End, found, out at);
            if (count < 0) throw new SyscallException("ioctl(PAGEMAP_SCAN)", (int)-count, $"Asking what process {processId} wrote", GuestMemoryError.UffdUnsupported);
            foreach (var range in found.AsSpan(0, (int)count))
            {
                for (var page = (range.start - region.Base) / HostPage.Size; page < (range.end - region.Base) / HostPage.Size; page++) words[page >> 6] |= 1UL << (int)(page & 63);
            }
        }
    }

    private static Microsoft.Win32.SafeHandles.SafeFileHandle OpenPagemap(int processId)
    {
        try
        {
            return File.OpenHandle($"/proc/{processId}/pagemap");
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new GuestMemoryException(GuestMemoryError.UffdUnsupported, $"What process {processId} wrote only the kernel knows, and it cannot be asked: {exception.Message}", exception);
        }
    }
}
