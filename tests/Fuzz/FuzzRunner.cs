namespace GuestMemory.Fuzz;

/// <summary>Runs a target on an input, and takes for a finding what is too slow or needs too much memory as well as what it throws.</summary>
internal static class FuzzRunner
{
    /// <summary>The longest input; what a parser itself limits at a larger size is tested by a test of its own.</summary>
    public const int MaxInput = 64 << 10;

    private const long MaxAllocated = 64L << 20;
    private static readonly TimeSpan s_maxTime = TimeSpan.FromSeconds(1);

    public static void Run(FuzzTarget target, byte[] input)
    {
        // Time of the processor, which others that use the machine do not change; what compiles a method for the first time is no finding.
        if (Measure(target, input) > s_maxTime && Measure(target, input) is var again && again > s_maxTime)
            throw new FindingException($"{input.Length} bytes took {again.TotalSeconds:0.00} s of processor time");
    }

    private static TimeSpan Measure(FuzzTarget target, byte[] input)
    {
        var time = Environment.CpuUsage.TotalTime;
        var allocated = GC.GetAllocatedBytesForCurrentThread();
        target.Run(input);
        allocated = GC.GetAllocatedBytesForCurrentThread() - allocated;
        Check.True(allocated <= MaxAllocated, $"{input.Length} bytes made it allocate {allocated} bytes");
        return Environment.CpuUsage.TotalTime - time;
    }
}
