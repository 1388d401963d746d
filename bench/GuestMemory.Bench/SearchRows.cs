using GuestMemory.Core;

namespace GuestMemory.Bench;

/// <summary>Searches that find nothing, and comparisons of equal memories, on every CPU: beside memory-read.c, which reads the same bytes.</summary>
internal sealed class SearchRows : RowSet
{
    private const ulong Size = 512UL << 20;

    private readonly GuestMemoryMmap _direct = Map(new MmapRegionBuilder(Size));
    private readonly GuestMemoryMmap _other = Map(new MmapRegionBuilder(Size));
    private readonly GuestMemoryMmap _guarded;
    private readonly MemorySearch _bytes = new(MemoryPattern.Parse("81 ?? 93 f4"));
    private readonly MemorySearch _text = new(MemoryPattern.FromText("Schlüssel", ignoreCase: true));
    private readonly MemorySearch _regex = new(MemoryPattern.FromRegex(@"BOOT_IMAGE=[\x20-\x7e]+"));

    public SearchRows()
    {
        // Without a name, so that nothing is left of it.
        var path = Path.Combine(Directory.Exists("/dev/shm") ? "/dev/shm" : Path.GetTempPath(), Path.GetRandomFileName());
        using (var file = File.Create(path)) file.SetLength((long)Size);
        _guarded = Map(new MmapRegionBuilder(Size).WithFile(path));
        File.Delete(path);
    }

    public override string Name => "search";

    public override string Setup => "512 MiB of bytes from 0 to 127 that look random, in pages of 4 KiB, on both CPUs";

    public override string Program => "memory-read";

    public override string[] Filters => [""];

    public override string Mebibytes => $"{Size >> 20}";

    public override string Cpus => "0,1";

    public override Row[] Rows { get; } =
    [
        new("search anonymous memory for bytes, one of them open; C reads it", "\"read_direct\"", "1.25", 1),
        new("search it for text in either case; C reads it", "\"read_direct\"", "1.25", 1),
        new("search it by a regular expression; C reads it", "\"read_direct\"", "", 1),
        new("search a file on tmpfs for bytes; C copies one by process_vm_readv, and reads the copies", "\"read_guarded\"", "1.67", 1),
        new("compare two anonymous memories; C by memcmp", "\"compare_direct\"", "1.25", 1),
    ];

    protected override int WarmUps => 3;

    protected override double[] Measure() =>
    [
        Time(null, () => Find(_bytes, _direct)),
        Time(null, () => Find(_text, _direct)),
        Time(null, () => Find(_regex, _direct)),
        Time(null, () => Find(_bytes, _guarded)),
        Time(null, () => _ = new MemoryComparison(_direct, _other).Summarize().AreEqual ? 0 : throw new InvalidOperationException("They differ.")),
    ];

    private static void Find(MemorySearch search, GuestMemoryMmap memory)
    {
        foreach (var match in search.Find(memory)) throw new InvalidOperationException($"{match} was found.");
    }

    private static GuestMemoryMmap Map(MmapRegionBuilder builder)
    {
        var memory = GuestMemoryMmap.FromRegions([new GuestRegionMmap(builder.Build(), default, "bench")]);
        var piece = new ulong[(4 << 20) / sizeof(ulong)];
        var value = 1UL;
        for (ulong at = 0; at < Size; at += (ulong)piece.Length * sizeof(ulong))
        {
            for (var i = 0; i < piece.Length; i++)
            {
                value = unchecked((value * 6364136223846793005) + 1442695040888963407);
                piece[i] = (value >> 8) & 0x7f7f7f7f7f7f7f7f;
            }

            memory.WriteExact(new GuestAddress(at), System.Runtime.InteropServices.MemoryMarshal.AsBytes(piece.AsSpan()));
        }

        return memory;
    }
}
