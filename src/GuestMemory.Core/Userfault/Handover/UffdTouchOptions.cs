namespace GuestMemory.Core.Userfault;

/// <summary>In which order pages are touched.</summary>
public enum UffdTouchPattern
{
    /// <summary>One after the other.</summary>
    Sequential,
    /// <summary>Each once, in an order that the seed decides.</summary>
    Random,
    /// <summary>Every n-th, then the ones behind them, and so on.</summary>
    Strided,
}

/// <summary>How a VM's memory is touched, to rehearse a restore.</summary>
public sealed class UffdTouchOptions
{
    /// <summary>The order.</summary>
    public UffdTouchPattern Pattern { get; init; }

    /// <summary>How many pages are touched; 0 for all.</summary>
    public long Count { get; init; }

    /// <summary>How many threads touch, as a VM's processors would; each takes every n-th page of the order.</summary>
    public int ThreadCount { get; init; } = 1;

    /// <summary>The pages from one touch to the next where the pattern is strided.</summary>
    public int Stride { get; init; } = 16;

    /// <summary>The same seed gives the same random order.</summary>
    public int Seed { get; init; } = 1;
}

/// <summary>What touching a VM's memory took. A touch goes through the kernel, which adds about a microsecond to each.</summary>
public sealed record UffdTouchResult
{
    /// <summary>The pages that were touched.</summary>
    public required long TouchCount { get; init; }

    /// <summary>The touches that took 5 us or longer: what nearly every fault does, and nearly no touch of a page that is there.</summary>
    public required long FaultCount { get; init; }

    /// <summary>Touches that gave an error: the handler could not have the page.</summary>
    public required long ErrorCount { get; init; }

    /// <summary>The time of the first touch.</summary>
    public required TimeSpan FirstTouch { get; init; }

    /// <summary>What half of the faults stayed below.</summary>
    public required TimeSpan LatencyP50 { get; init; }

    /// <summary>The same for 90 of 100.</summary>
    public required TimeSpan LatencyP90 { get; init; }

    /// <summary>The same for 99 of 100.</summary>
    public required TimeSpan LatencyP99 { get; init; }

    /// <summary>The same for 999 of 1000.</summary>
    public required TimeSpan LatencyP999 { get; init; }

    /// <summary>The longest.</summary>
    public required TimeSpan LatencyMax { get; init; }

    /// <summary>From the first touch to the last.</summary>
    public required TimeSpan Duration { get; init; }
}
