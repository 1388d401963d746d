using System.Buffers.Binary;
using System.Diagnostics;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// What of a VM's serving must survive the process that serves it, as one piece of memory that may be shared. Events are read
/// straight into it, and a removal that was read never comes again: a successor applies those that it finds, which is right however
/// old they are, since the record of removed pages only ever grows. Which pages came already spares work and nothing else. What was
/// written is marked before it can be, and marks move to those that were taken before they are told: whichever process dies, none is lost.
/// </summary>
internal sealed unsafe class UffdVmState : IDisposable
{
    /// <summary>How many events are read at once.</summary>
    public const int Batch = 64;

    /// <summary>Which layout this program's states have. Every change of what lies where, or of what it means, takes the next number.</summary>
    public const uint Version = 1;

    // "GMVMSTAT".
    private const ulong Magic = 0x5441_5453_4d56_4d47;

    private const ulong CountersOffset = 2048;
    private const ulong SyncOffset = 2432;
    internal const int HeaderOffset = 2544;
    private const ulong FoundOffset = 2560;
    private const int FoundCapacity = 64;
    internal const int HistogramOffset = 4096;
    internal const int MovesOffset = 12288;
    private const ulong BitsOffset = 16384;

    // The magic and the version; the rest is kept free.
    internal const int HeaderSize = 16;

    // What is counted, or left out, at once.
    private const long BytesOfBlock = 4096;
    private const ulong PagesOfBlock = BytesOfBlock * 8;

    // A page and a number of pages in one word.
    private const int OpeningBits = 24;

    private readonly SafeMapping _mapping;
    private readonly UffdVmSync* _sync;
    private readonly PageRegion* _found;

    /// <param name="pageCount">The pages of all the VM's regions, of the host's page size.</param>
    /// <param name="shared">A memfd of <see cref="SizeOf"/> bytes; null for memory of this process alone.</param>
    /// <param name="isNew">Whether the memfd is all zeros; else a process with this layout must have made a state of it.</param>
    /// <param name="isReadOnly">Whether the memfd is open for reading alone, and only what the state says is asked for.</param>
    /// <exception cref="GuestMemoryException">InvalidMapping: the memfd is not one for a state. StateMismatch: the state has another layout.</exception>
    public UffdVmState(ulong pageCount, SafeDescriptor? shared = null, bool isNew = false, bool isReadOnly = false)
    {
        var length = (nuint)SizeOf(pageCount);
        if (shared is null)
        {
            _mapping = Mman.Map(length, Mman.PROT_READ | Mman.PROT_WRITE, Mman.MAP_PRIVATE | Mman.MAP_ANONYMOUS | Mman.MAP_NORESERVE, -1, 0, "Mapping the state of a VM");
        }
        else
        {
            using var lease = new DescriptorLease(shared);
            // One that can become shorter would end this process.
            if ((Memfd.Seals(shared) & Memfd.F_SEAL_SHRINK) == 0) throw new GuestMemoryException(GuestMemoryError.InvalidMapping, "The state of the VM is no sealed memfd.");
            if (!isNew) CheckHeader(shared);
            if (FileStatus.Get(shared).stx_size < length) throw new GuestMemoryException(GuestMemoryError.InvalidMapping, "The state of the VM is smaller than its regions need.");
            _mapping = Mman.Map(length, isReadOnly ? Mman.PROT_READ : Mman.PROT_READ | Mman.PROT_WRITE, Mman.MAP_SHARED, lease.Number, 0, "Mapping the state of a VM");
        }

        var start = (byte*)_mapping.Address;
        if (isNew) WriteHeader(new Span<byte>(start + HeaderOffset, HeaderSize));
        Messages = (UffdMsg*)start;
        Counters = (UffdCounters*)(start + CountersOffset);
        _sync = (UffdVmSync*)(start + SyncOffset);
        _found = (PageRegion*)(start + FoundOffset);
        Reads = new EventReads(&_sync->Reads);
        Moves = new UffdMoves((ulong*)(start + MovesOffset));
        Latency = new LatencyHistogram((long*)(start + HistogramOffset));
        Removed = new PageBits((ulong*)(start + BitsOffset), pageCount);
        Filled = new PageBits((ulong*)(start + BitsOffset + PageBits.SizeOf(pageCount)), pageCount);
        Written = new PageBits((ulong*)(start + BitsOffset + (2 * PageBits.SizeOf(pageCount))), pageCount);
        Removing = new PageBits((ulong*)(start + BitsOffset + (3 * PageBits.SizeOf(pageCount))), pageCount);
        Taken = new PageBits((ulong*)(start + BitsOffset + (4 * PageBits.SizeOf(pageCount))), pageCount);
    }

    /// <summary>Where events are read to: <see cref="Batch"/> of them.</summary>
    public UffdMsg* Messages { get; }

    public UffdCounters* Counters { get; }

    public LatencyHistogram Latency { get; }

    /// <summary>Where the VMM moved its memory to after the hand-over.</summary>
    public UffdMoves Moves { get; }

    /// <summary>Pages that were ever removed: zero from then on. The first region's pages come first, and so on.</summary>
    public PageBits Removed { get; }

    /// <summary>Pages that have come once.</summary>
    public PageBits Filled { get; }

    /// <summary>Whether events are being read.</summary>
    public EventReads Reads { get; }

    /// <summary>Where it is tracked: pages that the VM was seen to write or to give back, and no query has taken since.</summary>
    public PageBits Written { get; }

    /// <summary>Where it is tracked: pages that the VM was about to give back and that have not come anew since; they may still hold what they held.</summary>
    public PageBits Removing { get; }

    /// <summary>Marks that were taken, and whose taker may not have got them.</summary>
    public PageBits Taken { get; }

    /// <summary>Room for what the kernel finds; it stores it there also when the asking process is killed meanwhile. See <see cref="KeepFound"/>.</summary>
    public Span<PageRegion> Found => new(_found, FoundCapacity);

    /// <summary>Whether pages are missing that the limit of memory keeps from being filled ahead.</summary>
    public bool IsLimited => Volatile.Read(ref Counters->FillDone) == UffdCounters.FillLimited;

    /// <summary>Whether every page that came either was write-protected or is marked.</summary>
    public bool IsTracked
    {
        get => _sync->IsTracked != 0;
        set => _sync->IsTracked = value ? 1 : 0;
    }

    /// <summary>
    /// Pages that are about to become writable, until <see cref="EndOpening"/>; see <see cref="TryAwaitOpened"/>. None where what another
    /// process wrote there are no pages of the VM.
    /// </summary>
    public (ulong First, ulong Count) Opening
    {
        get
        {
            var opening = Volatile.Read(ref _sync->Opening);
            var (first, count) = (opening >> OpeningBits, opening & ((1UL << OpeningBits) - 1));
            return first <= Written.PageCount && count <= Written.PageCount - first ? (first, count) : (0, 0);
        }
    }

    /// <summary>Marks pages that are about to become writable.</summary>
    public void BeginOpening(ulong first, ulong count)
    {
        // Before the marks are looked at: either the process that takes them sees this, or the marks are made anew.
        Volatile.Write(ref _sync->Opening, first << OpeningBits | count);
        Interlocked.MemoryBarrier();
        Written.Set(first, count);
    }

    public void EndOpening() => Volatile.Write(ref _sync->Opening, 0);

    /// <summary>
    /// For any process: when it returns true, the pages that were being opened are writable. False after a millisecond: the process that
    /// opens them has no processor now, or has died.
    /// </summary>
    public bool TryAwaitOpened()
    {
        var opening = Opening;
        var started = Stopwatch.GetTimestamp();
        var wait = default(SpinWait);
        while (opening.Count != 0 && Opening == opening)
        {
            if (Stopwatch.GetTimestamp() - started > EventReads.Patience) return false;
            wait.SpinOnce(sleep1Threshold: -1);
        }

        return true;
    }

    /// <summary>Puts what the kernel has found among the marks that were taken.</summary>
    public void KeepFound(IEnumerable<UffdVmRegion> regions)
    {
        foreach (var region in regions)
        {
            foreach (var found in Found)
            {
                var (from, to) = (Math.Max(found.start, region.Base), Math.Min(found.end, region.End));
                if (from < to) Taken.Set(region.PageOf(from), (to - from) / HostPage.Size);
            }
        }

        Found.Clear();
    }

    /// <summary>What was done for the VM, up to now.</summary>
    /// <param name="processId">The VMM's process.</param>
    /// <param name="error">What went wrong last.</param>
    /// <param name="file">The memfd of the state, whose holes are then left as they are: to read one would make a page of it.</param>
    public UffdFigures Figures(int processId, string? error, SafeDescriptor? file = null)
    {
        long present = 0, removed = 0, known = 0;
        foreach (var (first, end) in PagesWithData(file))
        {
            present += Filled.Count(first, end);
            removed += Removed.Count(first, end);
            known += Filled.CountWith(Removed, first, end);
        }

        // The counters are read last: a page is noted as present after its fault is counted.
        return UffdFigures.Of(processId, ref *Counters, Latency, ((long)Filled.PageCount, present, removed), error) with { MissingPageCount = (long)Filled.PageCount - known };
    }

    /// <summary>The pages of which it can be noted that they came or were removed: all of them, or those whose bits are no hole of the file.</summary>
    private List<(ulong First, ulong End)> PagesWithData(SafeDescriptor? file)
    {
        var all = Filled.PageCount;
        if (file is null) return [(0, all)];
        var blocks = new bool[(int)((all + PagesOfBlock - 1) / PagesOfBlock)];
        MarkData(file, BitsOffset, blocks);
        MarkData(file, BitsOffset + PageBits.SizeOf(all), blocks);
        var ranges = new List<(ulong, ulong)>();
        for (var i = 0; i < blocks.Length; i++)
        {
            var first = i;
            while (i < blocks.Length && blocks[i]) i++;
            if (i > first) ranges.Add(((ulong)first * PagesOfBlock, Math.Min((ulong)i * PagesOfBlock, all)));
        }

        return ranges;
    }

    private void MarkData(SafeDescriptor file, ulong start, bool[] blocks)
    {
        var (from, end) = ((long)start, (long)(start + PageBits.SizeOf(Filled.PageCount)));
        for (var at = from; (at = Extents.NextData(file, at, end)) < end;)
        {
            var hole = Extents.NextHole(file, at, end);
            for (var block = (at - from) / BytesOfBlock; block < blocks.Length && block * BytesOfBlock < hole - from; block++) blocks[block] = true;
            if (hole <= at) break;
            at = hole;
        }
    }

    /// <summary>The bytes of a state: 16 KiB and five bits a page, of which three take memory only where writes are tracked.</summary>
    public static ulong SizeOf(ulong pageCount) => HostPage.RoundUp(BitsOffset + (5 * PageBits.SizeOf(pageCount)), HostPage.Size);

    /// <summary>The pages of a mapping list.</summary>
    public static ulong PagesOf(IEnumerable<GuestRegionUffdMapping> mappings) => mappings.Aggregate(0UL, static (pages, mapping) => pages + (mapping.Size / HostPage.Size));

    /// <summary>
    /// Keeps the events in memory: the kernel stores them while a killed process ends, and then waits for no disk but drops them.
    /// </summary>
    public void Lock() => _ = Mman.TryLock(_mapping.Address, (nuint)HostPage.Size);

    public void Dispose() => _mapping.Dispose();

    internal static void WriteHeader(Span<byte> header)
    {
        BinaryPrimitives.WriteUInt64LittleEndian(header, Magic);
        BinaryPrimitives.WriteUInt32LittleEndian(header[8..], Version);
    }

    private static void CheckHeader(SafeDescriptor file)
    {
        using var handle = new SafeFileHandle(file.Number, ownsHandle: false);
        Span<byte> header = stackalloc byte[HeaderSize];
        var isState = RandomAccess.Read(handle, header, HeaderOffset) == HeaderSize && BinaryPrimitives.ReadUInt64LittleEndian(header) == Magic;
        var version = BinaryPrimitives.ReadUInt32LittleEndian(header[8..]);
        if (isState && version == Version) return;
        throw new GuestMemoryException(GuestMemoryError.StateMismatch, isState
            ? $"The state of the VM has layout {version}, and this program knows layout {Version}: the VM can be served only by a program that knows its layout."
            : $"The state of the VM has no layout number: a program from before layout {Version} wrote it, and only such a program can serve the VM.");
    }
}
