
namespace GuestMemory.Core;

/// <summary>The pages that were written in some time, of all bitmaps of a source.</summary>
internal sealed class DirtyPages
{
    private readonly Dictionary<Key, ulong[]> _words = [];

    public DirtyPages()
    {
    }

    public DirtyPages(IEnumerable<DirtyBitmap> bitmaps)
    {
        foreach (var bitmap in bitmaps) Add(KeyOf(bitmap), bitmap.AsWords());
    }

    /// <summary>The bytes of the pages; the last page of a memory counts whole.</summary>
    public ulong Size => _words.Aggregate(0UL, static (sum, entry) => sum + ((ulong)BitScan.Count(entry.Value) * entry.Key.PageSize));

    public static Key KeyOf(DirtyBitmap bitmap) => new(bitmap.Source, bitmap.StartAddress, bitmap.PageSize, bitmap.PageCount);

    /// <summary>Adds the pages of other ones, which stay as they are.</summary>
    public void Add(DirtyPages other)
    {
        foreach (var (key, words) in other._words) Add(key, words);
    }

    private void Add(Key key, ReadOnlySpan<ulong> words)
    {
        if (!_words.TryGetValue(key, out var mine))
        {
            _words.Add(key, words.ToArray());
            return;
        }

        for (var i = 0; i < words.Length; i++) mine[i] |= words[i];
    }

    /// <summary>What tells the bitmaps of a source apart.</summary>
    internal readonly record struct Key(string Source, ulong StartAddress, ulong PageSize, long PageCount);
}
