using System.Diagnostics;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Tells, in a VM's state, whether its events are being read: a number that grows when that begins and when what was read has taken
/// effect, and is odd in between. The VM goes on already while its removal is on the way from the kernel into the record.
/// </summary>
internal readonly unsafe struct EventReads(int* count)
{
    /// <summary>How long to wait for another process's step, in ticks of <see cref="Stopwatch"/>.</summary>
    public static readonly long Patience = Stopwatch.Frequency / 1000;

    /// <summary>The number.</summary>
    public int Count => Volatile.Read(ref *count);

    public bool IsUnderWay => IsOdd(Volatile.Read(ref *count));

    public void Begin() => Interlocked.Increment(ref *count);

    public void End() => Interlocked.Increment(ref *count);

    /// <summary>The process that read has died, and its successor has applied all that was read.</summary>
    public void Recover()
    {
        if (IsUnderWay) End();
    }

    /// <summary>
    /// For any thread of any process: when it returns true, the events that were read up to now have taken effect. False after a
    /// millisecond: who reads has no processor now, or has died.
    /// </summary>
    public bool TryAwait()
    {
        Interlocked.MemoryBarrier();
        var reads = Volatile.Read(ref *count);
        var started = Stopwatch.GetTimestamp();
        var wait = default(SpinWait);
        while (IsOdd(reads) && Volatile.Read(ref *count) == reads)
        {
            if (Stopwatch.GetTimestamp() - started > Patience) return false;
            wait.SpinOnce(sleep1Threshold: -1);
        }

        return true;
    }

    private static bool IsOdd(int reads) => (reads & 1) != 0;
}
