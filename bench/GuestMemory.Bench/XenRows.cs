using System.Globalization;
using System.Runtime.InteropServices;
using GuestMemory.Core;
using GuestMemory.Core.Xen;

namespace GuestMemory.Bench;

/// <summary>
/// Mapping memory of other domains, in domain 0 of a Xen: the same as xen-map.c does with the bare system calls, whose comment says what
/// XEN_MEMORY is.
/// </summary>
internal sealed unsafe class XenRows : RowSet
{
    private const int Size = 16 << 20;
    private const int Grants = 64;
    private const int Direct = 3;

    private readonly MmapRange _foreign;
    private readonly MmapRange _granted;
    private readonly XenMmapRegion _onDemand;
    private readonly GuestMemoryMmap _mapped;
    private readonly GuestMemoryMmap _direct = GuestMemoryMmap.FromRegions([new GuestRegionMmap(new MmapRegionBuilder(Size).Build(), new GuestAddress(0))]);
    private readonly byte* _buffer = (byte*)NativeMemory.AlignedAlloc(2 << 20, 4096);
    private ulong _sink;

    public XenRows()
    {
        var numbers = Environment.GetEnvironmentVariable("XEN_MEMORY")!.Split(' ').Select(text => ulong.Parse(text, CultureInfo.InvariantCulture)).ToArray();
        uint[] references = [.. numbers[2..].Select(number => (uint)number)];
        _foreign = new MmapRange(Size, new GuestAddress(numbers[1] * 4096), MmapXenFlags.Foreign, (uint)numbers[0]) { File = XenDevice.OpenPrivcmd() };
        _granted = Range(MmapXenFlags.Grant);
        _onDemand = (XenMmapRegion)XenMmapRegion.FromRange(Range(MmapXenFlags.Grant | MmapXenFlags.NoAdvanceMap));
        _mapped = GuestMemoryMmap.FromRegions([new GuestRegionXen((XenMmapRegion)XenMmapRegion.FromRange(_foreign), new GuestAddress(0))]);
        _direct.Write(new GuestAddress(0), new byte[Size]);

        MmapRange Range(MmapXenFlags flags) => new(Grants * 4096, new GuestAddress(0), flags, 0) { File = XenDevice.OpenGntdev(), GrantReferences = references };
    }

    public override string Name => "xen";

    public override string Setup => "Xen 4.17 with a Debian kernel as domain 0, in QEMU (TCG)";

    public override string Program => "xen-map";

    public override string[] Filters => [""];

    public override Row[] Rows { get; } =
    [
        new("map and unmap 16 MiB of another domain", "\"foreign\"", "1.10", 1),
        new("map and unmap 64 granted pages", "\"grants\"", "1.10", 1),
        new("read 8 bytes of a granted page, on demand", "\"on_demand\"", "1.20", Grants),
        new("read 4 KiB of direct memory", null, "", Size / 4096),
        new("read 4 KiB of another domain's memory", null, "1.03", Size / 4096, Reference: "read 4 KiB of direct memory"),
        new("read 2 MiB of direct memory", null, "", Size / (2 << 20)),
        new("read 2 MiB of another domain's memory", null, "1.03", Size / (2 << 20), Reference: "read 2 MiB of direct memory"),
    ];

    // Without hardware virtualization a single one may take several times as long as the next.
    public override int Repetitions => 31;

    protected override int WarmUps => 2;

    public override string Remark(long allocated) => "In brackets, and what the ratio is to: the same of direct memory.";

    protected override double[] Measure()
    {
        var figures = new double[Rows.Length];
        figures[0] = Time(null, () => XenMmapRegion.FromRange(_foreign).Dispose());
        figures[1] = Time(null, MapGrants);
        figures[2] = Time(null, ReadOnDemand);
        foreach (var (memory, at) in new (GuestMemoryMmap, int)[] { (_direct, Direct), (_mapped, Direct + 1) })
        {
            figures[at] = Time(null, () => Read(memory, 4096));
            figures[at + 2] = Time(null, () => Read(memory, 2 << 20));
        }

        return figures;
    }

    private void MapGrants()
    {
        using var memory = XenMmapRegion.FromRange(_granted);
        _sink = memory.AsVolatileSlice().ReadObject<ulong>(0);
    }

    private void ReadOnDemand()
    {
        for (ulong page = 0; page < Grants; page++) _sink = _onDemand.AsVolatileSlice().ReadObject<ulong>(page * 4096);
    }

    private void Read(GuestMemoryMmap memory, int size)
    {
        var buffer = new Span<byte>(_buffer, size);
        for (var at = 0; at < Size; at += size) memory.Read(new GuestAddress((ulong)at), buffer);
    }
}
