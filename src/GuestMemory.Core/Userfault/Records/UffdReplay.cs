namespace GuestMemory.Core.Userfault;

/// <summary>
/// The plan by which a recorded working set is brought in: slices in the order of the first touches, the first of them small so that
/// a VM can begin, each then much larger than the one before; inside a slice the pages are sorted and joined to runs. Whoever touches
/// a page of the set before its slice has come waits for it a moment: most pages come sooner with their slice than by themselves.
/// </summary>
internal sealed class UffdReplay
{
    private const int FirstSlice = 512;

    // The pages of a slice may lie anywhere, and every run is a call of the kernel: few slices are fast ones.
    private const int Growth = 1024;

    private readonly AtomicBitmap _set;

    /// <param name="pages">The pages of the image in the order of their first touches.</param>
    /// <param name="imageLength">The bytes of the image.</param>
    public UffdReplay(uint[] pages, ulong imageLength)
    {
        _set = new AtomicBitmap((imageLength + HostPage.Size - 1) / HostPage.Size, 1);
        foreach (var page in pages) _set.SetBit(page);
        PageCount = pages.Length;
        var runs = new List<PageRun>();
        var ends = new List<int>();
        for (int at = 0, size = FirstSlice; at < pages.Length; at += size, size = checked((int)Math.Min((long)size * Growth, int.MaxValue)))
        {
            size = Math.Min(size, pages.Length - at);
            var slice = pages.AsSpan(at, size).ToArray();
            Array.Sort(slice);
            Join(slice, runs);
            ends.Add(runs.Count);
        }

        Runs = [.. runs];
        SliceEnds = [.. ends];
    }

    public int PageCount { get; }

    /// <summary>The runs, slice by slice.</summary>
    public PageRun[] Runs { get; }

    /// <summary>Where each slice ends among the runs.</summary>
    public int[] SliceEnds { get; }

    /// <summary>Whether a page of the image, which has the host's page size, is in the set.</summary>
    public bool Contains(ulong page) => _set.IsBitSet((long)page);

    /// <summary>The runs of pages that stand one behind the other and follow each other in the image.</summary>
    public static void Join(uint[] pages, List<PageRun> runs)
    {
        for (var i = 0; i < pages.Length;)
        {
            var first = i;
            while (++i < pages.Length && pages[i] == pages[i - 1] + 1)
            {
            }

            runs.Add(new PageRun(pages[first], pages[i - 1] + 1L));
        }
    }
}
