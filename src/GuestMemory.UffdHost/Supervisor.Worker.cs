using System.Diagnostics;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <content>The workers: one that has the VMs, and a spare one that is ready to have them; their start, what they say, and their end.</content>
internal sealed partial class Supervisor
{
    private static readonly string s_forbidden = Core.Interop.Pidfd.HowOf(Core.Interop.Pidfd.SIGSYS);

    // The worker that has the VMs, or will have them when it is ready.
    private WorkerProcess? _worker;

    // Ready, or about to be, and without a VM.
    private WorkerProcess? _spare;

    // When the next process is started; 0 for not at all.
    private long _startAt;

    // Workers that the VMs were given to.
    private int _workers;

    // Workers that ended one soon after the other.
    private int _restless;

    // Workers in a row that ended before they were ready.
    private int _failedStarts;

    /// <summary>Starts a worker: the one for the VMs, or where that is there a spare one.</summary>
    private void StartWorker()
    {
        _startAt = 0;
        WorkerProcess worker;
        try
        {
            _ = CheckImages();
            worker = WorkerProcess.Start(_privileges!);
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.ImageChanged)
        {
            // Where a worker still has the VMs it goes on: it has them from the time before.
            if (_worker is null) _failure = exception;
            else Fail(exception.Message);
            return;
        }
        catch (Exception exception) when (exception is GuestMemoryException or IOException)
        {
            Retry(exception.Message);
            return;
        }

        _epoll.Add(worker.End, worker);
        _epoll.Add(worker.Channel.Socket, worker.Channel);
        var isSpare = _worker is not null;
        _ = worker.Channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Start, Options = _options with { Images = [] }, IsUsed = isSpare || _workers > 0 || Array.Exists(_images, static image => image.Files is not { IsStored: false }), IsSpare = isSpare || (_predecessor is not null && _workers == 0) });
        SendImages(worker);
        if (isSpare)
        {
            Log.Lines.SpareStarted(worker.ProcessId);
            _spare = worker;
        }
        else
        {
            Log.Lines.WorkerStarted(worker.ProcessId);
            Employ(worker);
        }

        Staff();
    }

    /// <summary>Gives the VMs to a worker, at once or when it is ready.</summary>
    private void Employ(WorkerProcess worker)
    {
        _worker = worker;
        _workers++;
        worker.EmployedAt = Stopwatch.GetTimestamp();
        foreach (var image in _images)
        {
            GiveImage(worker, image);
            if (worker.Opened.Contains(image)) MakeReady(image);
        }

        foreach (var vm in _vms) vm.IsOffered = false;
        OfferMore();
    }

    private void Receive(Channel channel)
    {
        if (WorkerOf(channel) is not { } worker) return;
        try
        {
            while (channel.TryReceive(_unwanted) is { } message) Take(worker, message);
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.ImageChanged)
        {
            Refuse(worker, exception);
        }
        catch (GuestMemoryException exception)
        {
            Fail(exception.Message);
            worker.Kill();
        }

        foreach (var descriptor in _unwanted) descriptor.Dispose();
        _unwanted.Clear();
        // That it is gone its own descriptor says; until then there is nothing more to hear.
        if (channel.IsEnded) _epoll.Remove(channel.Socket);
    }

    private WorkerProcess? WorkerOf(Channel channel) => _worker?.Channel == channel ? _worker : _spare?.Channel == channel ? _spare : null;

    private void Take(WorkerProcess worker, ChannelMessage message)
    {
        worker.MissedBeats = 0;
        switch (message.Type)
        {
            case ChannelMessageType.Ready:
                worker.ReadyAt = Stopwatch.GetTimestamp();
                _failedStarts = 0;
                if (worker == _worker && _isListening) OfferMore();
                Staff();
                break;
            case ChannelMessageType.ImageReady:
                ImageReady(worker, message);
                break;
            case ChannelMessageType.ImageFailed:
                ImageFailed(worker, message);
                break;
            case ChannelMessageType.Failed:
                var exception = ErrorOf(message);
                if (_adding is not null && _adding.Number == message.Number)
                {
                    // The next worker can go on without it.
                    DropAdded(exception);
                    break;
                }

                // What stops the first one is told to whoever starts the handler, and so is an end that was asked for (OnError). Nothing
                // else is a reason to leave the VMs: another worker may do better.
                if (!_isListening || (exception.Error == GuestMemoryError.HandlerFailed && (_options.OnError == UffdOnError.Stop || _vms.Any(static vm => vm.List.OnError == UffdOnError.Stop)))) _failure = exception;
                else Fail(exception.Message);
                break;
            case ChannelMessageType.Taken:
                worker.Untaken--;
                OfferMore();
                break;
            case ChannelMessageType.CaughtUp:
                if (_vms.Find(message.Vm) is { } told) told.IsCaughtUp = true;
                break;
            case ChannelMessageType.Error:
                Fail(message.Vm, message.Message ?? "");
                break;
            case ChannelMessageType.Gone:
                if (message.Message is not null)
                {
                    // Another process still has it, and goes on.
                    if (_isTakingOver)
                    {
                        _failure = new GuestMemoryException(GuestMemoryError.HandlerStartFailed, message.Message);
                        break;
                    }

                    // It could not be taken.
                    Fail(message.Vm, message.Message);
                    worker.Untaken--;
                }

                if (_vms.Find(message.Vm) is { } vm)
                {
                    _vms.Remove(vm);
                    vm.Image.Handovers!.VmEnded(vm.Connection);
                }

                _vms.Close(message.Vm);
                SaveRecords();
                OfferMore();
                break;
            case ChannelMessageType.Closed:
                _vms.Close(message.Vm);
                SaveRecords();
                break;
        }
    }

    /// <summary>A worker reads the image in another way than those before it.</summary>
    private void Refuse(WorkerProcess worker, GuestMemoryException exception)
    {
        if (worker == _worker) _failure = exception;
        else Fail(exception.Message);
        worker.Kill();
    }

    private void Offer(VmRecord vm)
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
        vm.IsCaughtUp = false;
        if (vm.Order is { } order) SendOrder(vm, ChannelMessageType.StopVm, order);
        vm.ForgetLooks();
        worker.Untaken++;
    }

    /// <summary>Sends a VM to a worker; false where that does not take it.</summary>
    public static bool TryOffer(Channel channel, VmRecord vm) =>
        channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Vm, Vm = vm.Id, Image = vm.Image.Name, IsUsed = vm.IsUsed, Features = vm.Features }, vm.Socket, vm.Process, vm.Userfaultfd, vm.StateFile, vm.ListFile);

    private void OfferMore()
    {
        foreach (var vm in _vms) Offer(vm);
    }

    private void Ended(WorkerProcess worker)
    {
        // What it said last is heard first.
        Receive(worker.Channel);
        var how = Core.Interop.Pidfd.TryReap(worker.End);
        if (how is null) return;
        _epoll.Remove(worker.End);
        _epoll.Remove(worker.Channel.Socket);
        var wasReady = worker.IsReady;
        var wasSpare = worker == _spare;
        if (worker.IsOlderThan(Steady)) _restless = 0;
        worker.Dispose();
        if (wasSpare)
        {
            _spare = null;
        }
        else
        {
            _worker = null;
            _vms.CloseAll();
            SaveRecords();
        }

        if (_stopping || _failure is not null) return;
        if (!wasReady) _failedStarts++;
        var what = wasSpare ? $"the spare worker {worker.ProcessId} ended ({how})" : $"worker {worker.ProcessId} ended ({how})";
        Retry(how == s_forbidden ? $"{nameof(GuestMemoryError.ForbiddenCall)}: {what}: it made a system call that a worker never makes, which an attack by a VM or a fault of this program has it do. The kernel's log has the number of the call (audit: type=1326)" : what);
    }

    /// <summary>A worker has ended, or could not be started. The VMs are never given up for it.</summary>
    private void Retry(string what)
    {
        if (!_isListening && _failedStarts > 0)
        {
            _failure = new GuestMemoryException(GuestMemoryError.HandlerStartFailed, $"No worker can be started: {what}. The log says more.");
            return;
        }

        if (_worker is null && _spare is { } spare)
        {
            try
            {
                if (CheckImages())
                {
                    // It has the image from the time before. When it is gone another one starts, without.
                    spare.Kill();
                    return;
                }
            }
            catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.ImageChanged)
            {
                _failure = exception;
                return;
            }

            Fail($"{what}; worker {spare.ProcessId} has its VMs now");
            _spare = null;
            Employ(spare);
        }
        else
        {
            Fail($"{what}; another is started");
        }

        // At once the first time: a VM that waits for a page waits for the successor.
        var longest = _failedStarts > ManyFailedStarts ? LongestPause : MaxPause;
        var pause = _restless == 0 ? 0 : Math.Min(longest, 2 << Math.Min(_restless, 20));
        _restless++;
        var at = After(pause);
        // The start of a spare worker may be due later than the VMs can wait.
        if ((_worker is null || _spare is null) && (_startAt == 0 || at < _startAt)) _startAt = at;
    }

    /// <summary>
    /// Has a spare worker started where there is none. Where workers end one soon after the other it does not wait for the present one to
    /// be ready, which may end before; else it waits a moment, since the VMs that were waiting for the handler come now, and the start and
    /// rehearsal of a process would have their first pages wait.
    /// </summary>
    private void Staff()
    {
        if (_stopping || !_isListening || _spare is not null || _startAt != 0 || _worker is null) return;
        if (_restless > 1) _startAt = After(0);
        else if (_worker.IsReady) _startAt = After(SparePause);
    }

    private static long After(int milliseconds) => Stopwatch.GetTimestamp() + (Stopwatch.Frequency / 1000 * milliseconds);

    private void EndWorkers()
    {
        _stopping = true;
        _startAt = 0;
        _ = _worker?.Channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Stop, Message = AppliesOnError ? "the handler was stopped for good." : null });
        // It has nothing that it would have to put in order. Where no process may be signalled, the word is enough.
        _ = _spare?.Channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Stop });
        _spare?.Kill();
        var started = Stopwatch.GetTimestamp();
        // One that can neither be asked nor killed ends with its channel, when this process ends.
        while ((_worker is not null || _spare is not null) && Stopwatch.GetElapsedTime(started) < StopTimeout + TimeSpan.FromSeconds(1))
        {
            if (Stopwatch.GetElapsedTime(started) > StopTimeout) _worker?.Kill();
            _ = Step(50);
        }
    }
}
