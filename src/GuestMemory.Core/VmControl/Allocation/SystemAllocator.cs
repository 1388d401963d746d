namespace GuestMemory.Core.VmControl;

/// <summary>
/// Gives out what a VM's devices need: MMIO, ports, interrupts, general-purpose events and places on PCI buses (crosvm's
/// <c>resources::SystemAllocator</c>). Not for several threads at once.
/// </summary>
public sealed class SystemAllocator
{
    private const ulong LastPort = 0xffff;
    private const ulong IoAlign = 0x400;
    private const uint LastIrq = 1023;
    private const uint LastGpe = 255;
    private const ulong FunctionsPerDevice = 8;
    private const ulong FunctionsPerBus = 256;

    private readonly AddressAllocator _irqs;
    private readonly AddressAllocator _gpes = new(new AddressInterval(0, LastGpe), 1);
    private readonly SortedDictionary<byte, AddressAllocator> _buses = [];
    private readonly AddressAllocator? _io;
    private readonly AddressAllocator? _platform;
    private ulong _lastAnonId;

    /// <summary>An allocator of what a machine has.</summary>
    /// <param name="config">The machine.</param>
    /// <param name="reserveRegionSize">Bytes cut off the start of the high MMIO for a purpose of the caller's, see <see cref="ReservedRegion"/>.</param>
    /// <param name="mmioAddressRanges">Where MMIO can be at all; every pool is cut down to that. Everywhere where null or empty.</param>
    /// <exception cref="GuestMemoryException">IOPortOutOfRange; OutOfSpace: the reserved region is larger than the high MMIO; OutOfBounds: the high MMIO is all of 2^64 addresses.</exception>
    public SystemAllocator(SystemAllocatorConfig config, ulong? reserveRegionSize = null, IReadOnlyCollection<AddressInterval>? mmioAddressRanges = null)
    {
        ArgumentNullException.ThrowIfNull(config);
        var high = config.HighMmio;
        if (reserveRegionSize is { } size) (ReservedRegion, high) = Reserve(high, size);
        if (config.Io is { } io) _io = new AddressAllocator(CheckedPorts(io), IoAlign);
        LowMmio = Pools(config.LowMmio);
        HighMmio = Pools(high);
        if (config.PlatformMmio is { } platform) _platform = Pools(platform);
        Mmio = new AddressAllocatorSet(LowMmio, HighMmio);
        _irqs = new AddressAllocator(new AddressInterval(config.FirstIrq, LastIrq), 1);

        AddressAllocator Pools(AddressInterval pool) =>
            new(mmioAddressRanges is { Count: > 0 } ? mmioAddressRanges.Select(pool.Intersect) : [pool], HostPage.Size);
    }

    /// <summary>
    /// An allocator of the addresses that a memory leaves to devices, as a PC has them: MMIO from 3 to 4 GiB but for the last 20 MiB
    /// (the firmware's and the interrupt controllers'), 64 GiB of MMIO above the memory and 4 GiB, ports from 0xc000, interrupts
    /// from 5.
    /// </summary>
    public static SystemAllocator ForMemory(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        const ulong GiB = 1 << 30;
        var above = Math.Max(4 * GiB, HostPage.RoundUp(Math.Min(memory.LastAddress, ulong.MaxValue - 66 * GiB) + 1, GiB));
        var config = new SystemAllocatorConfig
        {
            Io = new AddressInterval(0xc000, LastPort),
            LowMmio = new AddressInterval(0xc000_0000, 0xfebf_ffff),
            HighMmio = new AddressInterval(above, above + 64 * GiB - 1),
            FirstIrq = 5,
        };
        return new SystemAllocator(config, mmioAddressRanges: Gaps(memory));
    }

    /// <summary>MMIO below 4 GiB.</summary>
    public AddressAllocator LowMmio { get; }

    /// <summary>For a debugger and for logs: the MMIO and the ports.</summary>
    public override string ToString() => $"MMIO: {Mmio}{(_io is null ? "" : $"; ports: {_io}")}";

    /// <summary>MMIO above the memory.</summary>
    public AddressAllocator HighMmio { get; }

    /// <summary>Both, the low one first (upstream: mmio_allocator_any).</summary>
    public AddressAllocatorSet Mmio { get; }

    /// <summary>What was cut off the high MMIO; null for nothing.</summary>
    public AddressInterval? ReservedRegion { get; }

    /// <summary>Ports.</summary>
    /// <exception cref="GuestMemoryException">NoIoAllocator: this machine has none.</exception>
    public AddressAllocator Io => _io ?? throw new GuestMemoryException(GuestMemoryError.NoIoAllocator, "This machine has no ports; give SystemAllocatorConfig.Io.");

    /// <summary>MMIO for platform devices.</summary>
    /// <exception cref="GuestMemoryException">MissingPlatformMmioAddresses: this machine has none.</exception>
    public AddressAllocator PlatformMmio => _platform
        ?? throw new GuestMemoryException(GuestMemoryError.MissingPlatformMmioAddresses, "This machine has no MMIO for platform devices; give SystemAllocatorConfig.PlatformMmio.");

    /// <summary>All MMIO pools, the low ones first.</summary>
    public IReadOnlyList<AddressInterval> MmioPools => [.. LowMmio.Pools, .. HighMmio.Pools];

    /// <summary>A new holder: Anon(1), Anon(2) and so on (upstream: get_anon_alloc).</summary>
    public Alloc NextAnonAlloc() => new Alloc.Anon(++_lastAnonId);

    /// <summary>
    /// MMIO for a device: above 4 GiB where it is prefetchable and has no highest address, and where that is full, or otherwise,
    /// below.
    /// </summary>
    /// <returns>The first address.</returns>
    /// <exception cref="GuestMemoryException">ExistingAlloc, AllocSizeZero, BadAlignment, OutOfSpace.</exception>
    public ulong AllocateMmio(ulong size, Alloc alloc, string tag, MmioOptions? options = null)
    {
        options ??= new MmioOptions();
        if (options.MaxAddress < uint.MaxValue) throw AddressAllocator.OutOfSpace($"No MMIO is kept below 0x{options.MaxAddress:x}; the least highest address is 0xffffffff.");
        if (Mmio.Get(alloc) is not null) throw AddressAllocator.Existing(alloc);
        if (options is { Prefetchable: true, MaxAddress: ulong.MaxValue })
        {
            var error = HighMmio.TryAllocate(size, alloc, tag, options.Alignment, options.TopDown, out var high);
            if (error is not { Error: GuestMemoryError.OutOfSpace }) return AddressAllocator.Start(error, high);
        }

        return AddressAllocator.Start(LowMmio.TryAllocate(size, alloc, tag, options.Alignment, options.TopDown, out var low), low);
    }

    /// <summary>Keeps a range from being given out, as far as it lies in MMIO pools.</summary>
    /// <exception cref="GuestMemoryException">ExistingAlloc: some of it is given out; then nothing is reserved.</exception>
    public void ReserveMmio(AddressInterval range)
    {
        var reserved = new List<(AddressAllocator Allocator, Alloc Alloc)>();
        foreach (var allocator in new[] { LowMmio, HighMmio })
        {
            foreach (var overlap in allocator.Pools.Select(range.Intersect).Where(static overlap => !overlap.IsEmpty))
            {
                var alloc = NextAnonAlloc();
                if (allocator.TryAllocateAt(overlap, alloc, "pci mmio reserve") is { } error)
                {
                    foreach (var taken in reserved) taken.Allocator.Release(taken.Alloc);
                    throw error;
                }

                reserved.Add((allocator, alloc));
            }
        }
    }

    /// <summary>The lowest interrupt that is free; null where none is.</summary>
    public uint? AllocateIrq() => AllocateNumber(_irqs, "irq-auto");

    /// <summary>Takes an interrupt; false where it is taken or out of range.</summary>
    public bool ReserveIrq(uint irq) => _irqs.TryAllocateAt(new AddressInterval(irq, irq), NextAnonAlloc(), "irq-fixed") is null;

    /// <summary>Takes an interrupt back.</summary>
    /// <exception cref="GuestMemoryException">OutOfSpace: it was not given out.</exception>
    public void ReleaseIrq(uint irq) => _irqs.ReleaseContaining(irq);

    /// <summary>The lowest general-purpose event that is free, from 0 to 255; null where none is.</summary>
    public uint? AllocateGpe() => AllocateNumber(_gpes, "gpe-auto");

    /// <summary>A free place on a bus: a device of its own, or, where those have run out, a function; null where the bus is full.</summary>
    public PciAddress? AllocatePci(byte bus, string tag) =>
        AllocateNumber(Bus(bus), tag) is { } place ? new PciAddress(bus, (byte)(place >> 3), (byte)(place & 7)) : null;

    /// <summary>Takes a place; false where it is taken, or not one that can be given out.</summary>
    public bool ReservePci(PciAddress address, string tag) =>
        IsPlace(address) && Bus(address.Bus).TryAllocateAt(new AddressInterval(Place(address), Place(address)), NextAnonAlloc(), tag) is null;

    /// <summary>Takes a place back; false where it was not given out.</summary>
    public bool ReleasePci(PciAddress address) =>
        IsPlace(address) && _buses.TryGetValue(address.Bus, out var bus) && bus.TryReleaseContaining(Place(address), out _) is null;

    /// <summary>Whether no place of a bus is taken.</summary>
    public bool IsPciBusEmpty(byte bus) => !_buses.TryGetValue(bus, out var allocator) || allocator.IsEmpty;

    private static List<AddressInterval> Gaps(GuestMemoryMmap memory)
    {
        var gaps = new List<AddressInterval>();
        var next = 0UL;
        foreach (var region in memory.Regions)
        {
            if (region.GuestAddress > next) gaps.Add(new AddressInterval(next, region.GuestAddress - 1));
            if (region.LastAddress == ulong.MaxValue) return gaps;
            next = region.LastAddress + 1;
        }

        gaps.Add(new AddressInterval(next, ulong.MaxValue));
        return gaps;
    }

    private static bool IsPlace(PciAddress address) => address is { Device: < 32, Function: < 8 };

    private static ulong Place(PciAddress address) => (ulong)address.Device << 3 | address.Function;

    private uint? AllocateNumber(AddressAllocator allocator, string tag) =>
        allocator.TryAllocate(1, NextAnonAlloc(), tag, null, reverse: false, out var range) is null ? (uint)range.Start : null;

    private AddressAllocator Bus(byte bus)
    {
        if (!_buses.TryGetValue(bus, out var allocator))
        {
            // The first device of bus 0 is the bridge to the host.
            allocator = new AddressAllocator(new AddressInterval(bus == 0 ? FunctionsPerDevice : 0, FunctionsPerBus - 1), 1, FunctionsPerDevice);
            _buses.Add(bus, allocator);
        }

        return allocator;
    }

    private static AddressInterval CheckedPorts(AddressInterval io) => io.End <= LastPort
        ? io
        : throw new GuestMemoryException(GuestMemoryError.IOPortOutOfRange, $"The ports {io} pass the last one, 0xffff.");

    private static (AddressInterval Reserved, AddressInterval Left) Reserve(AddressInterval high, ulong size)
    {
        var length = high.Length ?? throw new GuestMemoryException(GuestMemoryError.OutOfBounds, "High MMIO of all 2^64 addresses leaves no room for anything else.");
        if (size > length) throw AddressAllocator.OutOfSpace($"A reserved region of {size} bytes does not fit in the high MMIO, {high}.");
        if (size == 0) return (AddressInterval.Empty, high);
        return size == length ? (high, AddressInterval.Empty) : (new AddressInterval(high.Start, high.Start + (size - 1)), new AddressInterval(high.Start + size, high.End));
    }
}
