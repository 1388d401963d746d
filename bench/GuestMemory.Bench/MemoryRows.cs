using System.Runtime.InteropServices;
using GuestMemory.Core;

namespace GuestMemory.Bench;

/// <summary>Access to memory, one figure each: the same loops as in cbase.c, over 1 GiB of direct memory.</summary>
internal sealed unsafe class MemoryRows : RowSet
{
    private const ulong Total = 1 << 30;
    private const int Window = 256 << 10;
    private const int Values = 1 << 20;
    private const int Regions = 256;
    private const int Rounds = 4096;
    private const int GuardedRounds = 20_000;
    private const int GuardedSize = 32 << 20;

    private static readonly int[] s_sizes = [64, 4096, 64 << 10, 2 << 20];

    private readonly GuestMemoryMmap _memory;
    private readonly GuestRegionMmap _region;
    private readonly GuestMemoryMmap _tracked;
    private readonly GuestMemoryMmap _many;
    private readonly GuestRegionMmap _guarded;
    private readonly byte* _buffer = (byte*)NativeMemory.AlignedAlloc(2 << 20, 4096);
    private readonly uint* _random = (uint*)NativeMemory.AlignedAlloc(Values * sizeof(uint), 4096);
    private readonly uint* _near = (uint*)NativeMemory.AlignedAlloc(Values * sizeof(uint), 4096);
    private ulong _sink;

    public MemoryRows()
    {
        _region = Region(Total);
        _memory = GuestMemoryMmap.FromRegions([_region]);
        var slice = _region.AsVolatileSlice();
        for (ulong at = 0; at < Total; at += 8) slice.WriteObject(at, at * 0x9E3779B97F4A7C15);
        new Span<byte>(_buffer, 2 << 20).Fill(0x5a);
        _tracked = GuestMemoryMmap.FromRegions([Region(Total, tracked: true)]);
        _tracked.WriteObject(new GuestAddress(0), 0UL);
        _many = GuestMemoryMmap.FromRegions(Enumerable.Range(0, Regions).Select(i => Region(1 << 20, (ulong)i << 20)));
        using var file = File.OpenHandle(Path.Combine("/dev/shm", $"gm-bench-{Guid.NewGuid():N}"), FileMode.CreateNew, FileAccess.ReadWrite, FileShare.ReadWrite, FileOptions.DeleteOnClose);
        RandomAccess.SetLength(file, GuardedSize);
        _guarded = new GuestRegionMmap(new MmapRegionBuilder(GuardedSize).WithFile(file).Build(), new GuestAddress(0));
        _guarded.AsVolatileSlice().CopyFrom<byte>(new byte[GuardedSize]);
        ulong seed = 88172645463325252;
        for (var i = 0; i < Values; i++)
        {
            _random[i] = (uint)(Next(ref seed) % Total) & ~7u;
            _near[i] = (uint)(Next(ref seed) % Window) & ~7u;
        }
    }

    public override string Name => "memory";

    public override string Setup => "1 GiB of anonymous memory";

    public override string[] Filters => ["_seq", "\"type\":\"u64\""];

    public override string Mebibytes => "1024";

    public override Row[] Rows { get; } =
    [
        new("read 64 B, sequential, through a slice", Read(64), "1.15", Count(64)),
        new("write 64 B, sequential, through a slice", Write(64), "1.15", Count(64)),
        new("read 64 B, sequential, through a region", Read(64), "1.60", Count(64)),
        new("write 64 B, sequential, through a region", Write(64), "1.60", Count(64)),
        .. s_sizes[1..].SelectMany(size => new Row[]
        {
            new($"read {Size(size)}, sequential", Read(size), "1.03", Count(size)),
            new($"write {Size(size)}, sequential", Write(size), "1.03", Count(size)),
        }),
        new("load a u64, random in 1 GiB, through a slice", "\"bench\":\"load_rand\",\"type\":\"u64\",\"ws\":\"all\"", "1.50", Values),
        new("store a u64, random in 1 GiB, through a slice", "\"bench\":\"store_rand\",\"type\":\"u64\",\"ws\":\"all\"", "1.50", Values),
        new("load a u64, random in 256 KiB, through a slice", "\"bench\":\"load_rand\",\"type\":\"u64\",\"ws\":\"256K\"", "1.50", Values),
        new("store a u64, random in 256 KiB, through a slice", "\"bench\":\"store_rand\",\"type\":\"u64\",\"ws\":\"256K\"", "1.50", Values),
        new("the same, tracked, pages already dirty", "\"bench\":\"store_rand\",\"type\":\"u64\",\"ws\":\"256K\"", "6 ns", Values),
        new("load a u64 by its guest address, one region", "\"bench\":\"load_rand\",\"type\":\"u64\",\"ws\":\"256K\"", "", Values),
        new("store a u64 by its guest address, one region", "\"bench\":\"store_rand\",\"type\":\"u64\",\"ws\":\"256K\"", "", Values),
        new("find a region among 256", null, "12 ns", Rounds * Regions),
        new("guarded: read 64 B", Read(64), "", GuardedRounds),
        new("guarded: read 4 KiB", Read(4096), "", GuardedRounds),
        new("guarded: read 2 MiB", Read(2 << 20), "", 32),
    ];

    protected override int WarmUps => 8;

    protected override double[] Measure()
    {
        var sizes = s_sizes[1..];
        var slice = _region.AsVolatileSlice();
        var tracked = _tracked.Regions[0].AsVolatileSlice();
        return
        [
            Time(null, () => ReadSlice(slice)),
            Time(null, () => WriteSlice(slice)),
            Time(null, () => ReadRegion(_region)),
            Time(null, () => WriteRegion(_region)),
            .. sizes.SelectMany(size => new[] { Time(null, () => ReadAll(size)), Time(null, () => WriteAll(size)) }),
            Time(null, () => _sink = Load(slice, _random, _random + Values)),
            Time(null, () => Store(slice, _random, _random + Values)),
            Time(null, () => _sink = Load(slice, _near, _near + Values)),
            Time(null, () => Store(slice, _near, _near + Values)),
            Time(null, () => Store(tracked, _near, _near + Values)),
            Time(null, () => _sink = LoadAt(_memory, _near, _near + Values)),
            Time(null, () => StoreAt(_memory, _near, _near + Values)),
            Time(null, Find),
            Time(null, () => ReadGuarded(64, GuardedRounds)),
            Time(null, () => ReadGuarded(4096, GuardedRounds)),
            Time(null, () => ReadGuarded(2 << 20, 32)),
        ];
    }

    private static GuestRegionMmap Region(ulong size, ulong address = 0, bool tracked = false) =>
        new(new MmapRegionBuilder(size).WithDirtyTracking(tracked).Build(), new GuestAddress(address));

    private static string Read(int size) => $"\"bench\":\"memcpy_read_seq\",\"size\":{size},";

    private static string Write(int size) => $"\"bench\":\"memcpy_write_seq\",\"size\":{size},";

    private static int Count(int size) => (int)(Total / (ulong)size);

    private static string Size(int size) => size < 1 << 20 ? $"{size >> 10} KiB" : $"{size >> 20} MiB";

    private static ulong Next(ref ulong seed)
    {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        return seed ^= seed << 17;
    }

    private void ReadSlice(VolatileSlice slice)
    {
        var buffer = new Span<byte>(_buffer, 64);
        for (ulong at = 0; at < Total; at += 64) slice.Read(at, buffer);
    }

    private void WriteSlice(VolatileSlice slice)
    {
        var buffer = new ReadOnlySpan<byte>(_buffer, 64);
        for (ulong at = 0; at < Total; at += 64) slice.Write(at, buffer);
    }

    private void ReadRegion(GuestRegionMmap region)
    {
        var buffer = new Span<byte>(_buffer, 64);
        for (ulong at = 0; at < Total; at += 64) region.Read(new MemoryRegionAddress(at), buffer);
    }

    private void WriteRegion(GuestRegionMmap region)
    {
        var buffer = new ReadOnlySpan<byte>(_buffer, 64);
        for (ulong at = 0; at < Total; at += 64) region.Write(new MemoryRegionAddress(at), buffer);
    }

    private void ReadAll(int size)
    {
        var buffer = new Span<byte>(_buffer, size);
        for (ulong at = 0; at < Total; at += (ulong)size) _memory.Read(new GuestAddress(at), buffer);
    }

    private void WriteAll(int size)
    {
        var buffer = new ReadOnlySpan<byte>(_buffer, size);
        for (ulong at = 0; at < Total; at += (ulong)size) _memory.Write(new GuestAddress(at), buffer);
    }

    private static ulong Load(VolatileSlice slice, uint* offset, uint* end)
    {
        ulong sum = 0;
        for (; offset < end; offset++) sum += slice.ReadObject<ulong>(*offset);
        return sum;
    }

    private static void Store(VolatileSlice slice, uint* offset, uint* end)
    {
        for (; offset < end; offset++) slice.WriteObject(*offset, (ulong)offset);
    }

    private static ulong LoadAt(GuestMemoryMmap memory, uint* offset, uint* end)
    {
        ulong sum = 0;
        for (; offset < end; offset++) sum += memory.ReadObject<ulong>(new GuestAddress(*offset));
        return sum;
    }

    private static void StoreAt(GuestMemoryMmap memory, uint* offset, uint* end)
    {
        for (; offset < end; offset++) memory.WriteObject(new GuestAddress(*offset), (ulong)offset);
    }

    private void Find()
    {
        ulong sum = 0;
        for (var round = 0; round < Rounds; round++)
        {
            for (ulong at = 0; at < Regions; at++) sum += _many.FindRegion(new GuestAddress(at << 20))!.Size;
        }

        _sink += sum;
    }

    private void ReadGuarded(int size, int rounds)
    {
        var buffer = new Span<byte>(_buffer, size);
        ulong at = 0;
        for (var i = 0; i < rounds; i++)
        {
            _guarded.Read(new MemoryRegionAddress(at), buffer);
            at = at + (ulong)size & GuardedSize - 1;
        }
    }
}
