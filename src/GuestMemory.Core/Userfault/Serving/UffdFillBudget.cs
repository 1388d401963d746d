using System.Diagnostics;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// How much a handler may bring in without a fault: so many bytes a second, and so many for all VMs that it serves together. Everything
/// happens under the lock of the <see cref="UffdFiller"/>.
/// </summary>
/// <param name="rate">Bytes a second; 0 for any number.</param>
/// <param name="limit">Bytes in all; 0 for any number.</param>
internal sealed class UffdFillBudget(ulong rate, ulong limit)
{
    // So much of a second's bytes may come at once.
    private const int PartsOfSecond = 20;

    // Every VM that is served.
    private readonly List<UffdFill> _fills = [];

    // What may come now; below 0 where the last piece was larger.
    private double _bytes;
    private long _countedAt = Stopwatch.GetTimestamp();

    // The bytes that may come at once.
    private ulong Most => rate == 0 ? ulong.MaxValue : Math.Max(rate / PartsOfSecond, HostPage.Size);

    public void Add(UffdFill fill) => _fills.Add(fill);

    public void Remove(UffdFill fill) => _fills.Remove(fill);

    /// <summary>How long nothing may come, in timestamps; 0 where something may.</summary>
    public long Pause(long now)
    {
        if (rate == 0) return 0;
        _bytes = Math.Min(_bytes + (Stopwatch.GetElapsedTime(_countedAt, now).TotalSeconds * rate), Most);
        _countedAt = now;
        return _bytes > 0 ? 0 : (long)(-_bytes / rate * Stopwatch.Frequency) + 1;
    }

    /// <summary>Sets aside what the next piece of a VM may bring, until <see cref="Count"/>.</summary>
    public void Reserve(UffdFill fill)
    {
        fill.Most = Most;
        fill.Room = ulong.MaxValue;
        if (limit == 0) return;
        var brought = 0UL;
        foreach (var other in _fills) brought += (ulong)Math.Max(0, Volatile.Read(ref other.Vm.Counters.FillBytes)) + other.SetAside;
        fill.Room = limit - Math.Min(brought, limit);
        fill.SetAside = Math.Min(fill.Room, Math.Max(fill.Vm.LargestUnit, UffdVm.FullPiece));
        fill.Room = fill.SetAside;
    }

    /// <summary>The piece has come.</summary>
    public void Count(UffdFill fill)
    {
        fill.SetAside = 0;
        _bytes -= fill.Vm.Brought;
    }
}
