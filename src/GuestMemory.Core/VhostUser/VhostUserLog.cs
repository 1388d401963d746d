using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <summary>
/// The dirty log of a front end: which file it is, and whether writes are marked in it, beside what else tracks them. Used by the thread that executes requests,
/// except for <see cref="SignalChange"/>.
/// </summary>
internal sealed class VhostUserLog : IDisposable
{
    private volatile MmapLogReg? _log;
    private volatile bool _enabled;
    private volatile SafeDescriptor? _event;

    /// <summary>Whether there is a log, and writes are marked in it. For any thread.</summary>
    public bool IsMarked => _enabled && _log is not null;

    /// <summary>Replaces the log; the former one is released when no region marks in it any more.</summary>
    /// <param name="log">The log; this object owns it from now on, unless this throws.</param>
    /// <param name="regions">The memory.</param>
    /// <param name="running">The virtqueues that run.</param>
    /// <exception cref="GuestMemoryException">InvalidLog: it does not reach to the end of the memory; nothing has changed.</exception>
    public void Replace(MmapLogReg log, IReadOnlyList<GuestMemoryRegion> regions, IReadOnlyList<VhostUserVring> running)
    {
        Install(log, _enabled, regions, running);
        _log?.Dispose();
        _log = log;
    }

    /// <summary>Begins or ends marking in the log (VHOST_F_LOG_ALL).</summary>
    /// <exception cref="GuestMemoryException">InvalidLog; nothing has changed.</exception>
    public void Enable(bool enabled, IReadOnlyList<GuestMemoryRegion> regions, IReadOnlyList<VhostUserVring> running)
    {
        if (_enabled == enabled) return;
        Install(_log, enabled, regions, running);
        _enabled = enabled;
    }

    /// <summary>Has writes to regions that were added marked, as those to the others are.</summary>
    /// <exception cref="GuestMemoryException">InvalidLog: the log does not reach to them.</exception>
    public void Cover(IReadOnlyList<GuestMemoryRegion> added) => Install(_log, _enabled, added, []);

    /// <summary>Checks that the log reaches to the used ring of a virtqueue, where it is logged.</summary>
    /// <exception cref="GuestMemoryException">InvalidLog.</exception>
    public void Check(VhostUserVring vring)
    {
        if (_log is not null) vring.TrackerIn(_log);
    }

    /// <summary>Has writes to the used ring of a virtqueue marked, as the others are.</summary>
    public void Cover(VhostUserVring vring) => Install(_log, _enabled, [], [vring]);

    /// <summary>Sets the eventfd that tells the front end of marks (SET_LOG_FD).</summary>
    public void SetEvent(SafeDescriptor descriptor)
    {
        var former = _event;
        _event = descriptor;
        former?.Dispose();
    }

    /// <summary>Tells the front end that there are new marks, where it wants to know.</summary>
    public void SignalChange()
    {
        if (!_enabled || _event is not { } descriptor) return;
        try
        {
            EventFd.SignalShared(descriptor);
        }
        catch (ObjectDisposedException)
        {
            // The front end has replaced it, and looks at all of the log then.
        }
    }

    /// <summary>Has a thread go on that the front end makes wait in <see cref="SignalChange"/>.</summary>
    public void LetSignalsGo()
    {
        if (_event is { } descriptor) EventFd.LetWritersGo(descriptor);
    }

    public void Dispose()
    {
        _log?.Dispose();
        _event?.Dispose();
    }

    /// <summary>Installs all trackers, or none where one cannot be made. A log that is too short is refused also where marking is off.</summary>
    private static void Install(MmapLogReg? log, bool enabled, IReadOnlyList<GuestMemoryRegion> regions, IReadOnlyList<VhostUserVring> vrings)
    {
        var usedRings = log is null ? [] : vrings.Select(vring => vring.TrackerIn(log)).ToArray();
        GuestMemoryRegion.SetLogs(regions, region =>
        {
            var tracker = log is null ? null : new AtomicBitmapMmap(region.GuestAddress, region.Size, log);
            return enabled ? tracker : null;
        });
        for (var i = 0; i < usedRings.Length; i++) vrings[i].SetTracker(enabled ? usedRings[i] : null);
    }
}
