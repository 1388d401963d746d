using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// What of a VM's serving must survive the process that serves it, as one piece of memory that may be shared. Events are read
/// straight into it, and a removal that was read never comes again: a successor applies those that it finds, which is right however
/// old they are, since the record of removed pages only ever grows. Which pages came already spares work and nothing else.
/// </summary>
internal sealed unsafe class UffdVmState : IDisposable
{
    /// <summary>How many events are read at once.</summary>
    public const int Batch = 64;

    private const ulong CountersOffset = 2048;
    private const ulong HistogramOffset = 4096;
    private const ulong BitsOffset = 12288;

    private readonly SafeMapping _mapping;

    /// <param name="pageCount">The pages of all the VM's regions, of the host's page size.</param>
    /// <param name="shared">A memfd of <see cref="SizeOf"/> bytes, zero where the VM is new; null for memory of this process alone.</param>
    public UffdVmState(ulong pageCount, SafeDescriptor? shared = null)
    {
        var length = (nuint)SizeOf(pageCount);
        if (shared is null)
        {
            _mapping = Mman.Map(length, Mman.PROT_READ | Mman.PROT_WRITE, Mman.MAP_PRIVATE | Mman.MAP_ANONYMOUS | Mman.MAP_NORESERVE, -1, 0, "Mapping the state of a VM");
        }
        else
        {
            using var lease = new DescriptorLease(shared);
            if (FileStatus.Get(shared).stx_size < length) throw new GuestMemoryException(GuestMemoryError.InvalidMapping, "The state of the VM is smaller than its regions need.");
            _mapping = Mman.Map(length, Mman.PROT_READ | Mman.PROT_WRITE, Mman.MAP_SHARED, lease.Number, 0, "Mapping the state of a VM");
        }

        var start = (byte*)_mapping.Address;
        Messages = (UffdMsg*)start;
        Counters = (UffdCounters*)(start + CountersOffset);
        Latency = new LatencyHistogram((long*)(start + HistogramOffset));
        Removed = new PageBits((ulong*)(start + BitsOffset), pageCount);
        Filled = new PageBits((ulong*)(start + BitsOffset + PageBits.SizeOf(pageCount)), pageCount);
        Written = new PageBits((ulong*)(start + BitsOffset + (2 * PageBits.SizeOf(pageCount))), pageCount);
    }

    /// <summary>Where events are read to: <see cref="Batch"/> of them.</summary>
    public UffdMsg* Messages { get; }

    public UffdCounters* Counters { get; }

    public LatencyHistogram Latency { get; }

    /// <summary>Pages that were ever removed: zero from then on. The first region's pages come first, and so on.</summary>
    public PageBits Removed { get; }

    /// <summary>Pages that have come once.</summary>
    public PageBits Filled { get; }

    /// <summary>Pages that the VM was seen to write, where that is tracked by faults.</summary>
    public PageBits Written { get; }

    /// <summary>All pages, those that came and those that were removed at least once.</summary>
    public (long All, long Present, long Removed) CountPages() => ((long)Filled.PageCount, Filled.Count(), Removed.Count());

    /// <summary>What was done for the VM, up to now.</summary>
    public UffdFigures Figures(int processId, string? error) => UffdFigures.Of(processId, ref *Counters, Latency, CountPages(), error) with { MissingPageCount = (long)Filled.PageCount - Filled.CountWith(Removed) };

    /// <summary>The bytes of a state: 12 KiB and three bits a page, of which the third takes memory only where writes are tracked.</summary>
    public static ulong SizeOf(ulong pageCount) => HostPage.RoundUp(BitsOffset + (3 * PageBits.SizeOf(pageCount)), HostPage.Size);

    /// <summary>The pages of a mapping list.</summary>
    public static ulong PagesOf(IEnumerable<GuestRegionUffdMapping> mappings) => mappings.Aggregate(0UL, static (pages, mapping) => pages + (mapping.Size / HostPage.Size));

    /// <summary>
    /// Keeps the events in memory: the kernel stores them while a killed process ends, and then waits for no disk but drops them.
    /// </summary>
    public void Lock() => _ = Mman.TryLock(_mapping.Address, (nuint)HostPage.Size);

    public void Dispose() => _mapping.Dispose();
}
