using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Xen;

/// <summary>The memory of a domain that translates its addresses, found by trying every frame.</summary>
internal static class XenDomainMemory
{
    // 128 MiB a request.
    private const ulong AtOnce = 1 << 15;

    /// <summary>A region for each run of frames that are there.</summary>
    /// <param name="calls">The device's answers.</param>
    /// <param name="device">privcmd.</param>
    /// <param name="domain">The domain.</param>
    /// <param name="count">The frames that it may have.</param>
    /// <param name="name">How regions are called.</param>
    /// <exception cref="GuestMemoryException">NoMemoryRegion: it has none; what <see cref="ForeignFrames"/> throws.</exception>
    public static GuestMemoryRegion[] Map(XenCalls calls, SafeFileHandle device, uint domain, ulong count, string name)
    {
        var regions = new List<GuestMemoryRegion>();
        try
        {
            foreach (var (first, length) in Runs(calls, device, (ushort)domain, count))
            {
                var range = new MmapRange(length * XenPage.Size, new GuestAddress(first * XenPage.Size), MmapXenFlags.Foreign, domain) { File = device };
                regions.Add(new GuestRegionXen((XenMmapRegion)XenMmapRegion.FromRange(range, calls), range.Address, name));
            }
        }
        catch
        {
            foreach (var region in regions) region.Dispose();
            throw;
        }

        return regions.Count > 0 ? [.. regions] : throw new GuestMemoryException(GuestMemoryError.NoMemoryRegion, $"{name} has no memory that can be mapped.");
    }

    /// <summary>The runs of frames that are there, those that touch as one.</summary>
    private static List<(ulong First, ulong Length)> Runs(XenCalls calls, SafeFileHandle device, ushort domain, ulong count)
    {
        var runs = new List<(ulong First, ulong Length)>();
        for (ulong from = 0; from < count; from += AtOnce)
        {
            var part = ForeignFrames.Probe(calls, device, domain, from, (int)Math.Min(AtOnce, count - from));
            for (var i = 0; i < part.Length; i++)
            {
                if (!part[i]) continue;
                if (runs.Count > 0 && runs[^1].First + runs[^1].Length == from + (ulong)i) runs[^1] = (runs[^1].First, runs[^1].Length + 1);
                else runs.Add((from + (ulong)i, 1));
            }
        }

        return runs;
    }
}
