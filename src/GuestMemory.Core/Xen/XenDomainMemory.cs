using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Xen;

/// <summary>The memory of a domain that translates its addresses, found by trying every frame.</summary>
internal static class XenDomainMemory
{
    // 128 MiB a request.
    private const ulong AtOnce = 1 << 15;

    /// <summary>
    /// One region from address 0 to the last frame that is there, so that an offset in an image of it is a guest physical address. Where the
    /// domain has no memory (the hole below 4 GiB, what a balloon took) it reads as zeros.
    /// </summary>
    /// <param name="calls">The device's answers.</param>
    /// <param name="device">privcmd.</param>
    /// <param name="domain">The domain.</param>
    /// <param name="count">The frames that it may have.</param>
    /// <param name="name">How the region is called.</param>
    /// <exception cref="GuestMemoryException">NoMemoryRegion: it has none; what <see cref="ForeignFrames"/> throws.</exception>
    public static GuestRegionXen Map(XenCalls calls, SafeFileHandle device, uint domain, ulong count, string name)
    {
        var runs = Runs(calls, device, (ushort)domain, count);
        if (runs.Length == 0) throw new GuestMemoryException(GuestMemoryError.NoMemoryRegion, $"{name} has no memory that can be mapped.");
        var range = new MmapRange(runs[^1].End * XenPage.Size, new GuestAddress(0), MmapXenFlags.Foreign, domain) { File = device };
        return new GuestRegionXen(XenMmapRegion.FromRuns(range, runs, calls), range.Address, name);
    }

    /// <summary>The runs of frames that are there, those that touch as one.</summary>
    private static FrameRun[] Runs(XenCalls calls, SafeFileHandle device, ushort domain, ulong count)
    {
        var runs = new List<FrameRun>();
        for (ulong from = 0; from < count; from += AtOnce)
        {
            var part = ForeignFrames.Probe(calls, device, domain, from, (int)Math.Min(AtOnce, count - from));
            for (var i = 0; i < part.Length; i++)
            {
                if (!part[i]) continue;
                var frame = from + (ulong)i;
                if (runs.Count > 0 && runs[^1].End == frame) runs[^1] = new FrameRun(runs[^1].First, runs[^1].Count + 1);
                else runs.Add(new FrameRun(frame, 1));
            }
        }

        return [.. runs];
    }
}
