using System.Diagnostics;

namespace GuestMemory.Core.Userfault;

/// <summary>What was done for a VM, or for all VMs of a handler, up to a moment. It does not change any more.</summary>
public sealed record UffdFigures
{
    /// <summary>Where the handler listens, for all VMs of an image; null for one VM, and for those of several images together.</summary>
    public string? SocketPath { get; init; }

    /// <summary>The name of the image that the VM is served from; null for all VMs of several images together.</summary>
    public string? Image { get; init; }

    /// <summary>The VM's number, which no other VM of the handler has; 0 for all VMs together.</summary>
    public int VmId { get; init; }

    /// <summary>The VM's name, which no other VM of the handler has; null for all VMs together.</summary>
    public string? VmName { get; init; }

    /// <summary>The VMM's process; 0 for all VMs together.</summary>
    public required int ProcessId { get; init; }

    /// <summary>What follows where a page of the VM cannot be read.</summary>
    public UffdOnError OnError { get; init; }

    /// <summary>Whether the VMM handed over a memfd by which the VM's memory can be read.</summary>
    public bool SharesMemory { get; init; }

    /// <summary>Whether the limit of memory keeps pages of the VM from being filled ahead.</summary>
    public bool IsLimited { get; init; }

    /// <summary>Faults that were answered, whatever with.</summary>
    public required long FaultCount { get; init; }

    /// <summary>Faults that were answered with bytes of the image.</summary>
    public required long CopiedCount { get; init; }

    /// <summary>Faults that were answered with zeros: pages that were removed, and holes of the image.</summary>
    public required long ZeroCount { get; init; }

    /// <summary>Faults of pages that had come meanwhile.</summary>
    public required long PresentCount { get; init; }

    /// <summary>Faults of shared pages that were there and only not mapped (UFFDIO_CONTINUE).</summary>
    public required long ContinuedCount { get; init; }

    /// <summary>Faults of pages that were write-protected to be tracked.</summary>
    public required long WriteProtectedCount { get; init; }

    /// <summary>Faults that had to wait: for memory, for the source, for a removal, or for their slice of a replay.</summary>
    public required long DeferredCount { get; init; }

    /// <summary>Faults that ended with a poisoned page.</summary>
    public required long PoisonedCount { get; init; }

    /// <summary>Faults whose page had gone, or that were not answered on purpose.</summary>
    public required long FailedCount { get; init; }

    /// <summary>Removals that the VM reported.</summary>
    public required long RemoveCount { get; init; }

    /// <summary>Times that the source could not be read.</summary>
    public required long SourceErrorCount { get; init; }

    /// <summary>Faults that are read and not answered.</summary>
    public required long QueueDepth { get; init; }

    /// <summary>Bytes copied for faults.</summary>
    public required long FaultByteCount { get; init; }

    /// <summary>Bytes copied beside a fault's page, as its window.</summary>
    public required long WindowByteCount { get; init; }

    /// <summary>Bytes copied without a fault, ahead or as a replay.</summary>
    public required long FillByteCount { get; init; }

    /// <summary>Bytes that came out of the image, one way or another.</summary>
    public long ByteCount => FaultByteCount + WindowByteCount + FillByteCount;

    /// <summary>Bytes of zeros that came without a fault.</summary>
    public required long FillZeroByteCount { get; init; }

    /// <summary>The host's pages that the regions have.</summary>
    public required long PageCount { get; init; }

    /// <summary>Those that came at least once.</summary>
    public required long PresentPageCount { get; init; }

    /// <summary>Those that the VM gave back at least once.</summary>
    public required long RemovedPageCount { get; init; }

    /// <summary>How much of the memory has come, from 0 to 100.</summary>
    public double PercentPresent => PageCount == 0 ? 0 : 100.0 * PresentPageCount / PageCount;

    /// <summary>Those that neither came nor were given back.</summary>
    public long MissingPageCount { get; init; }

    /// <summary>Whether there is a VM, and every page of all of them has come or was given back. The faults that brought them are all counted then.</summary>
    public bool IsRestored => PageCount > 0 && MissingPageCount == 0 && Vms.All(static vm => vm.MissingPageCount == 0);

    /// <summary>The time from reading a fault to its answer that half of them stayed below.</summary>
    public required TimeSpan LatencyP50 { get; init; }

    /// <summary>The same for 90 of 100.</summary>
    public required TimeSpan LatencyP90 { get; init; }

    /// <summary>The same for 99 of 100.</summary>
    public required TimeSpan LatencyP99 { get; init; }

    /// <summary>The same for 999 of 1000.</summary>
    public required TimeSpan LatencyP999 { get; init; }

    /// <summary>The longest.</summary>
    public required TimeSpan LatencyMax { get; init; }

    /// <summary>The bounds of <see cref="LatencyCounts"/>.</summary>
    public static IReadOnlyList<TimeSpan> LatencyBounds { get; } =
        [.. new[] { 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 250_000, 1_000_000, 10_000_000 }.Select(static microseconds => TimeSpan.FromMicroseconds(microseconds))];

    /// <summary>
    /// How many answers took no longer than each of <see cref="LatencyBounds"/> and longer than the one before, and how many took longer
    /// than all. Unlike percentiles, those of several handlers can be added up.
    /// </summary>
    public IReadOnlyList<long> LatencyCounts { get; init => field = value ?? []; } = [];

    /// <summary>What all answers took together, to about 3 %.</summary>
    public TimeSpan LatencySum { get; init; }

    /// <summary>The time from the hand-over to the first answer; null before, and for all VMs together.</summary>
    public required TimeSpan? TimeToFirstPage { get; init; }

    /// <summary>What went wrong last; null where nothing did.</summary>
    public required string? Error { get; init; }

    /// <summary>The figures of the VMs that are served now, where these are of all.</summary>
    // Where JSON says nothing of it, its reader gives null.
    public IReadOnlyList<UffdFigures> Vms { get; init => field = value ?? []; } = [];

    /// <summary>Those of VMs together.</summary>
    /// <param name="totals">What was counted for them, those that have ended among them.</param>
    /// <param name="vms">Those that are served now.</param>
    /// <param name="error">What went wrong last.</param>
    internal static UffdFigures OfAll(UffdTotals totals, IReadOnlyList<UffdFigures> vms, string? error) =>
        Of(0, ref totals.Counters, totals.Latency, (vms.Sum(static vm => vm.PageCount), vms.Sum(static vm => vm.PresentPageCount), vms.Sum(static vm => vm.RemovedPageCount)), error) with
        {
            MissingPageCount = vms.Sum(static vm => vm.MissingPageCount),
            Vms = vms,
        };

    internal static UffdFigures Of(int processId, ref UffdCounters counters, LatencyHistogram latency, (long All, long Present, long Removed) pages, string? error) => new()
    {
        ProcessId = processId,
        FaultCount = counters.Faults,
        CopiedCount = counters.Copied,
        ZeroCount = counters.Zero,
        PresentCount = counters.Present,
        ContinuedCount = counters.Continued,
        WriteProtectedCount = counters.WriteProtected,
        DeferredCount = counters.Deferred,
        PoisonedCount = counters.Poisoned,
        FailedCount = counters.Failed,
        RemoveCount = counters.Removes,
        SourceErrorCount = counters.SourceErrors,
        QueueDepth = counters.QueueDepth,
        FaultByteCount = counters.FaultBytes,
        WindowByteCount = counters.WindowBytes,
        FillByteCount = counters.FillBytes,
        FillZeroByteCount = counters.FillZeroBytes,
        PageCount = pages.All,
        PresentPageCount = pages.Present,
        RemovedPageCount = pages.Removed,
        LatencyP50 = latency.Percentile(0.5),
        LatencyP90 = latency.Percentile(0.9),
        LatencyP99 = latency.Percentile(0.99),
        LatencyP999 = latency.Percentile(0.999),
        LatencyMax = latency.Max,
        LatencyCounts = latency.CountBetween(LatencyBounds),
        LatencySum = latency.Sum,
        TimeToFirstPage = counters.FirstPageAt == 0 ? null : Stopwatch.GetElapsedTime(counters.StartedAt, counters.FirstPageAt),
        Error = error,
    };
}
