using System.Diagnostics;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <content>The worker: its start, what it says, its end, and its successor.</content>
internal sealed partial class Supervisor
{
    private void StartWorker()
    {
        _startAt = 0;
        try
        {
            _images!.Check();
            _worker = WorkerProcess.Start();
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.ImageChanged)
        {
            _failure = exception;
            return;
        }
        catch (Exception exception) when (exception is GuestMemoryException or IOException)
        {
            Retry(exception.Message);
            return;
        }

        _workers++;
        _epoll.Add(_worker.End, _worker);
        _epoll.Add(_worker.Channel.Socket, _worker.Channel);
        _ = _images.TrySend(_worker.Channel);
        _ = _worker.Channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Start, Options = _options, IsUsed = _workers > 1 });
        foreach (var vm in _vms) vm.IsOffered = false;
        Log.Write($"worker {_worker.ProcessId} started");
    }

    private void Hear(Channel channel)
    {
        try
        {
            while (channel.TryReceive(_unwanted) is { } message) Take(message);
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.ImageChanged)
        {
            _failure = exception;
        }
        catch (GuestMemoryException exception)
        {
            Fail(exception.Message);
            _worker?.Kill();
        }

        foreach (var descriptor in _unwanted) descriptor.Dispose();
        _unwanted.Clear();
        // That it is gone its own descriptor says; until then there is nothing more to hear.
        if (channel.IsEnded) _epoll.Remove(channel.Socket);
    }

    private void Take(ChannelMessage message)
    {
        switch (message.Type)
        {
            case ChannelMessageType.Ready:
                _images!.CheckLayout(message.Layout ?? "");
                _worker!.ReadyAt = Stopwatch.GetTimestamp();
                _failedStarts = 0;
                _imageLength = message.ImageLength;
                if (_reception is not null) OfferMore();
                break;
            case ChannelMessageType.Failed:
                _failure = new GuestMemoryException(NamedConverter<GuestMemoryError>.TryParse(message.ErrorId, out var error) ? error : GuestMemoryError.HandlerFailed, message.Message ?? "The worker cannot go on.");
                break;
            case ChannelMessageType.Taken:
                _worker!.Untaken--;
                OfferMore();
                break;
            case ChannelMessageType.Error:
                if (_vms.Find(message.Vm) is { } failing) failing.Error = message.Message;
                Fail(message.Message ?? "");
                break;
            case ChannelMessageType.Gone:
                if (message.Message is not null)
                {
                    // It could not be taken.
                    Fail(message.Message);
                    _worker!.Untaken--;
                }

                if (_vms.Find(message.Vm) is { } vm) _reception?.Close(vm);
                OfferMore();
                break;
        }
    }

    private void Offer(KeptVm vm)
    {
        // More than a few at a time could fill the channel.
        if (_worker is not { IsReady: true, Untaken: < 16 } worker || vm.IsOffered) return;
        if (!TryOffer(worker.Channel, vm))
        {
            // It is about to end, or it hangs; its successor gets everything.
            worker.Kill();
            return;
        }

        vm.IsOffered = vm.IsUsed = true;
        worker.Untaken++;
    }

    /// <summary>Sends a VM to a worker; false where that does not take it.</summary>
    public static bool TryOffer(Channel channel, KeptVm vm) =>
        channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Vm, Vm = vm.Id, IsUsed = vm.IsUsed }, vm.Socket, vm.Userfaultfd, vm.StateFile, vm.ListFile);

    private void OfferMore()
    {
        foreach (var vm in _vms) Offer(vm);
    }

    private void Ended(WorkerProcess worker)
    {
        // What it said last is heard first.
        Hear(worker.Channel);
        var how = Core.Interop.Pidfd.TryReap(worker.End);
        if (how is null) return;
        _epoll.Remove(worker.End);
        _epoll.Remove(worker.Channel.Socket);
        var wasReady = worker.IsReady;
        if (worker.IsOlderThan(Steady)) _restless = 0;
        worker.Dispose();
        _worker = null;
        if (_stopping || _failure is not null) return;
        if (!wasReady) _failedStarts++;
        Retry($"worker {worker.ProcessId} ended ({how})");
    }

    private void Retry(string what)
    {
        if (_failedStarts >= MaxFailedStarts || (_reception is null && _failedStarts > 0))
        {
            _failure = new GuestMemoryException(GuestMemoryError.HandlerStartFailed, $"No worker can be started: {what}. The log says more.");
            return;
        }

        // At once the first time: whoever waits for a page waits for the successor.
        var pause = _restless == 0 ? 0 : Math.Min(MaxPause, 2 << Math.Min(_restless, 10));
        _restless++;
        _startAt = Stopwatch.GetTimestamp() + (Stopwatch.Frequency / 1000 * pause);
        Fail($"{what}; {_vms.Count} VMs are handed to another in {pause} ms");
    }

    private void EndWorker()
    {
        _startAt = 0;
        if (_worker is null) return;
        _stopping = true;
        _ = _worker.Channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Stop });
        var started = Stopwatch.GetTimestamp();
        while (_worker is not null)
        {
            if (Stopwatch.GetElapsedTime(started) > StopTimeout) _worker.Kill();
            _ = Step(50);
        }
    }
}
