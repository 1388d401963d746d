using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.UffdHost;

/// <content>
/// Whether the workers are alive. Looks are counted, not the time between them: where this process did not run either, a worker had no
/// chance to answer.
/// </content>
internal sealed partial class Supervisor
{
    private const int LookInterval = 1000;

    // So many looks in a row without a sign of life.
    private const int MaxMissed = 5;

    // So many may pass until a worker is ready, which has to look through the files; more each time that was not enough.
    private const int MaxStartLooks = 60;

    private long _lookAt;

    /// <summary>Milliseconds until the next look; -1 where no VM depends on a worker.</summary>
    private int WatchTimeout => _vms.Count == 0 && _worker is { IsReady: true } ? -1
        : (int)Math.Clamp(Math.Ceiling(Stopwatch.GetElapsedTime(Stopwatch.GetTimestamp(), _lookAt).TotalMilliseconds), 0, LookInterval);

    /// <summary>Looks after the workers where it is time. What they said until now must have been heard.</summary>
    private void Watch()
    {
        if (WatchTimeout != 0) return;
        _lookAt = Stopwatch.GetTimestamp() + (Stopwatch.Frequency / 1000 * LookInterval);
        Look(_worker);
        Look(_spare);
        if (_worker is not { IsReady: true } worker) return;
        foreach (var vm in _vms)
        {
            if (!vm.IsOffered || vm.CountStalledLooks() < MaxMissed) continue;
            Replace(worker, $"has read no fault of VM {vm.Id} for {MaxMissed} s, though some wait");
            return;
        }
    }

    private void Look(WorkerProcess? worker)
    {
        if (worker is null) return;
        var longest = worker.IsReady ? MaxMissed : MaxStartLooks * (1 + _failedStarts);
        if (worker.MissedBeats++ >= longest) Replace(worker, worker.IsReady ? $"has not answered for {MaxMissed} s" : $"was not ready after {longest} s");
        else if (worker.IsReady) _ = worker.Channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Beat });
    }

    private void Replace(WorkerProcess worker, string why)
    {
        Fail($"worker {worker.ProcessId} {why}: it is replaced");
        worker.Kill();
    }
}
