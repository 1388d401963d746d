namespace GuestMemory.Core.Userfault;

/// <summary>What was counted for VMs that have ended. For one thread, or under its owner's lock.</summary>
internal sealed class UffdTotals
{
    private UffdCounters _counters;

    public ref UffdCounters Counters => ref _counters;

    public LatencyHistogram Latency { get; } = new();

    public void Add(ref UffdCounters counters, LatencyHistogram latency)
    {
        _counters.Add(ref counters);
        // Nothing of a VM that has ended waits.
        _counters.QueueDepth = 0;
        Latency.Add(latency);
    }

    public void Add(UffdTotals others) => Add(ref others._counters, others.Latency);
}
