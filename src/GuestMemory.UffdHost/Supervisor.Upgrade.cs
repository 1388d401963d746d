using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <content>
/// The handler on its way to another program, seen from both ends. The new supervisor gets the image, starts a worker, and gets the VMs; then the
/// old one ends its worker, so that no two serve a VM, and the new one's takes over. Until that has said that it serves every VM the old
/// supervisor can go on, with its spare worker; no VMM is let in meanwhile.
/// </content>
internal sealed partial class Supervisor
{
    // How long each step may take: meanwhile no worker serves the VMs, or the successor does not answer.
    private static readonly TimeSpan SwitchLimit = TimeSpan.FromSeconds(10);

    private readonly Predecessor? _predecessor;
    private readonly bool _isDetached;
    private Successor? _successor;

    // From the moment at which it has VMs that another process can take back.
    private bool _isTakingOver;

    /// <summary>Whether another process has everything; this one frees nothing of it, and ends.</summary>
    public bool IsHandedOver { get; private set; }

    private bool AppliesOnError => _isFinal && _systemd.IsThere && _failure is null && _options.OnError != UffdOnError.Stop;

    /// <summary>Starts the program that is to take over; the client that asked is answered later.</summary>
    /// <exception cref="GuestMemoryException">UpgradeFailed.</exception>
    private void Upgrade(UffdControlRequest request)
    {
        try
        {
            _successor = StartSuccessor(request);
            Log.Lines.IsToTakeOver(_successor.ProcessId, string.Join(' ', request.Program!));
        }
        catch (GuestMemoryException exception)
        {
            Fail(exception.Message);
            throw;
        }
    }

    private Successor StartSuccessor(UffdControlRequest request)
    {
        if (_successor is not null) throw Successor.Failed("another one is about to.");
        if (_isCatchingUp) throw Successor.Failed("this process has taken the VMs over itself just now, and answers first what waited of them.");
        if (_adding is not null) throw Successor.Failed($"the image '{_adding.Name}' is being added.");
        if (Array.Find(_images, static image => image.IsRemoved) is { } removed) throw Successor.Failed($"the image '{removed.Name}' is being removed.");
        if (Array.Find(_images, static image => image.Failure is not null) is { } failed) throw Successor.Failed($"the image '{failed.Name}' cannot be served any more, and must be removed before: {failed.Failure!.Message}");
        // The caller of a program in the foreground waits for its end.
        if (!_isDetached && !_systemd.IsThere) throw Successor.Failed("this process runs in the foreground, without a service manager that could be told of the other.");
        if (request.Program is not [var program, ..] || !Path.IsPathRooted(program) || !File.Exists(program)) throw Successor.Failed($"there is no file {request.Program?.FirstOrDefault()}");
        if (request.Timeout <= 0) throw Successor.Failed("the time for it is over before it begins.");
        string[] arguments = [Program.SuccessorArgument, .. _isDetached ? [Program.DetachArgument] : Array.Empty<string>(), .. UffdArguments.From(OptionsNow())];
        var successor = Successor.Start(request.Program, arguments, [.. Program.Variables(), .. _systemd.Variables()], TimeSpan.FromMilliseconds(request.Timeout), _systemd.KeepAlive);
        try
        {
            foreach (var image in _images)
            {
                image.Files!.Give(successor);
                if (image.Recorder is not null) successor.Give(image.Prefix + Predecessor.TouchesName, image.Recorder.List);
            }

            successor.Send(ChannelMessageType.TakeOver);
            return successor;
        }
        catch
        {
            successor.End();
            throw;
        }
    }

    /// <summary>
    /// The options with the images of now: the new program gets these as descriptors all the same, but one that knows nothing of images with names must not
    /// take their VMs for those of the only one.
    /// </summary>
    private UffdHandlerOptions OptionsNow() => _options with { Images = [.. _images.Where(static image => image.Prefix.Length > 0).Select(static image => image.Options)] };

    private void ContinueUpgrade()
    {
        if (_successor is not { } successor || _stopping || IsHandedOver) return;
        try
        {
            successor.Look();
            if (!successor.IsReady) return;
            // VMMs wait in the queue of the socket, and the hand-overs that are under way come to their end.
            foreach (var image in _images) image.Handovers!.Suspend();
            if (Array.TrueForAll(_images, static image => image.Handovers!.IsQuiet)) SwitchTo(successor);
        }
        catch (GuestMemoryException exception)
        {
            GiveUp(exception);
        }
    }

    private void SwitchTo(Successor successor)
    {
        var limit = successor.Limit < SwitchLimit ? successor.Limit : SwitchLimit;
        foreach (var image in _images)
        {
            var listener = image.Handovers!.Listener;
            successor.Give(image.Prefix + (listener.IsOurs ? VmReceiver.StoredListener : VmReceiver.ForeignListener), listener.Socket);
        }

        foreach (var (name, descriptor) in _vms.Parts()) successor.Give(name, descriptor);
        using (var metrics = _metrics?.Duplicate()) Predecessor.Give(successor, Record(), _control!, _worker?.End, metrics);
        successor.Send(ChannelMessageType.TakeOver);
        successor.Await(ChannelMessageType.Prepared, limit);
        EndWorker(limit);
        Predecessor.GiveFigures(successor, _vms, _images);
        successor.Send(ChannelMessageType.Serve);
        successor.Await(ChannelMessageType.Serving, limit);
        IsHandedOver = true;
    }

    /// <summary>Ends the worker that has the VMs as if it had died, which it may at any moment. What became of it the loop finds out where it is still needed.</summary>
    private void EndWorker(TimeSpan limit)
    {
        if (_worker is null) return;
        _worker.Kill();
        Span<PollFd> entry = [new PollFd { fd = _worker.End.Number, events = Poll.POLLIN }];
        if (Poll.Wait(entry, (int)limit.TotalMilliseconds) <= 0) throw Successor.Failed($"worker {_worker.ProcessId} of this process did not end.");
    }

    private HandedOver Record() => new()
    {
        ControlPath = _control!.Path,
        Total = _vms.Total,
        LastVm = _vms.LastId,
        Workers = _workers,
        Taken = _taken,
        Error = _error,
        Vms = [.. _vms.Select(static vm => new HandedOverVm { Vm = vm.Id, Error = vm.Error, Order = vm.Order, TakenBy = vm.TakenBy })],
    };

    /// <summary>This process goes on.</summary>
    private void GiveUp(GuestMemoryException exception)
    {
        // Before anything of the VMs: it may have given them to a worker.
        _successor!.End();
        _successor = null;
        Resume();
        Fail(exception.Message);
        _control!.AnswerUpgrade(exception.Error == GuestMemoryError.UpgradeFailed ? exception : Successor.Failed(exception.Message, exception));
    }

    private void Resume()
    {
        foreach (var image in _images) image.Handovers!.Resume();
    }

    /// <summary>The other process serves, and waits for the end of this one.</summary>
    private int Leave()
    {
        _control!.DismissOthers();
        _spare?.Kill();
        // Everything after this the service manager hears from that process alone. Before it has heard it, the end of this one would be that of the service.
        _systemd.Notify($"MAINPID={_successor!.ProcessId}");
        for (; _systemd.HasPending; _systemd.Flush()) Thread.Sleep(LookPause);
        // A stop that came meanwhile was meant for the handler.
        if (_stopping) _successor.Stop();
        Log.Lines.HasTakenOver(_successor.ProcessId);
        return 0;
    }

    /// <summary>Goes on where the predecessor stops. VMs can connect when it returns.</summary>
    private void TakeOver(Predecessor predecessor, ControlServer.Actions actions)
    {
        _isTakingOver = true;
        foreach (var image in _images) image.Handovers!.Suspend();
        var record = predecessor.Record;
        // What can fail comes before there is no way back.
        _control = ControlServer.Adopt(_epoll, record.ControlPath, predecessor.TakeControl(), actions);
        if (predecessor.TakeMetrics() is { } metrics) _metrics = MetricsEndpoint.Adopt(metrics, _options.MetricsPort is null ? _options.MetricsPath : null, UffdFiguresText.OpenMetricsType, _meter.ToOpenMetrics);
        foreach (var told in record.Vms)
        {
            if (_vms.Find(told.Vm) is not { } vm) continue;
            (vm.Error, vm.Order, vm.TakenBy) = (told.Error, told.Order, told.TakenBy);
        }

        predecessor.AwaitTurn();
        _vms.Continue(record.Total, record.LastVm);
        foreach (var image in _images.Append(null))
        {
            using var figures = predecessor.TakeFigures(image);
            _vms.Continue(image, figures);
        }

        OfferAll();
        predecessor.AwaitEnd(_epoll);
        _isTakingOver = false;
        _workers += record.Workers;
        _taken = record.Taken;
        _error = record.Error;
        var controlPath = UffdRuntimeFolder.SocketOf(Path.GetDirectoryName(record.ControlPath)!, Environment.ProcessId);
        if (_isDetached) _ = TryRename(UffdRuntimeFolder.LogOf(record.ControlPath), UffdRuntimeFolder.LogOf(controlPath));
        if (TryRename(record.ControlPath, controlPath)) _control.Path = controlPath;
        Resume();
        Log.Lines.TookOver(_vms.Count);
    }

    /// <summary>Gives the worker every VM, and waits until it serves them. One that does not is no worker for them.</summary>
    private void OfferAll()
    {
        OfferMore();
        while (_worker is { Untaken: > 0 } || _vms.Any(static vm => !vm.IsOffered))
        {
            if (_worker is null || Pidfd.HasEnded(_worker.End)) throw new GuestMemoryException(GuestMemoryError.HandlerStartFailed, "its worker ended when it was given the VMs; the log may say why.");
            Span<PollFd> entry = [new PollFd { fd = _worker.Channel.Socket.Number, events = Poll.POLLIN }];
            _ = Poll.Wait(entry, TellPause);
            Receive(_worker.Channel);
            if (_failure is not null) throw _failure;
            OfferMore();
        }
    }

    private static bool TryRename(string before, string now)
    {
        try
        {
            File.Move(before, now, overwrite: true);
            return true;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            Log.Lines.KeepsName(before, exception.Message);
            return false;
        }
    }
}
