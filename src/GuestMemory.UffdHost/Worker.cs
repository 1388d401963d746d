using System.Collections.Concurrent;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.UffdHost;

/// <summary>
/// The process that answers faults, and may die at any moment. All that it knows of a VM it was given; what it learns that a
/// successor must know it writes into the VM's state, which is shared.
/// </summary>
internal sealed class Worker : IDisposable
{
    private readonly Channel _channel;
    private readonly UffdServer _server;
    private readonly PageSource _source;
    private readonly UffdPolicy _policy;
    private readonly ConcurrentDictionary<UffdVm, int> _ids = new();
    private volatile bool _isAlone;

    /// <summary>Takes source and policy over.</summary>
    public Worker(Channel channel, UffdHandlerOptions options, PageSource source, UffdPolicy policy)
    {
        _channel = channel;
        _source = source;
        _policy = policy;
        _server = new UffdServer(null, source, policy, options) { Failed = Failed, Ended = Ended };
    }

    /// <summary>Serves what the supervisor gives until it says stop; when the supervisor is gone, until every VM has ended.</summary>
    public static int Run()
    {
        using var channel = new Channel(OwnSession.Inherit(WorkerProcess.ChannelNumber));
        try
        {
            var files = new List<ImageFile>();
            if (TakeStart(channel, files, out var replay, out var touches) is not { Options: { } options } message) return 0;
            using var worker = Open(channel, options, files, replay, touches, message.IsUsed);
            replay?.Dispose();
            // For a successor that was not started before, VMs wait every millisecond.
            if (!message.IsUsed || message.IsSpare) UffdRehearsal.Run(worker._policy, worker._source, RehearsedHandler.Start);
            Confine();
            worker.Serve(static exception =>
            {
                // Whatever it is, a successor may do better.
                Log.Lines.WorkerBroke(Environment.ProcessId, exception);
                Environment.Exit(2);
            });
            return 0;
        }
        catch (GuestMemoryException exception)
        {
            Log.Lines.WentWrong(exception.Message);
            _ = channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Failed, ErrorId = exception.Error.ToString(), Message = exception.Message });
            return 1;
        }
    }

    public void Dispose()
    {
        _server.Dispose();
        _policy.Dispose();
        _source.Dispose();
    }

    /// <summary>Serves until it is told to stop.</summary>
    /// <param name="broken">Called where it can hear no more.</param>
    public void Serve(Action<Exception> broken)
    {
        var listener = new Thread(() => Listen(broken)) { IsBackground = true, Name = "uffd-control" };
        listener.Start();
        var ready = new ChannelMessage { Type = ChannelMessageType.Ready, ImageLength = _source.Length, Layout = _source.Layout };
        _ = _policy.Recorder is { } recorder ? _channel.TrySend(ready, recorder.List) : _channel.TrySend(ready);
        _server.Run();
    }

    /// <summary>Takes the image and its layers until it is told to start; null where that does not come.</summary>
    private static ChannelMessage? TakeStart(Channel channel, List<ImageFile> files, out SafeDescriptor? replay, out SafeDescriptor? touches)
    {
        replay = touches = null;
        var descriptors = new List<SafeDescriptor>();
        while (Wait(channel, descriptors) is { } message)
        {
            if (message.Type == ChannelMessageType.Start) return files.Count > 0 ? message : null;
            if (descriptors.Count != 1) return null;
            if (message.Type == ChannelMessageType.Image) files.Add(ImageFile.Adopt(message.Message ?? "", descriptors[0], message.IsMap));
            else if (message.Type == ChannelMessageType.Replay) replay = descriptors[0];
            else if (message.Type == ChannelMessageType.Record) touches = descriptors[0];
            else return null;
            descriptors.Clear();
        }

        return null;
    }

    /// <summary>Gives up all that serving does not need; what it needs files for is open from then on.</summary>
    private static void Confine()
    {
        HugePages.OpenPools();
        Log.Prepare();
        UffdDebug.Prepare();
        _ = Signals.Prepare();
        WorkerFilter.Enter();
    }

    private static Worker Open(Channel channel, UffdHandlerOptions options, List<ImageFile> files, SafeDescriptor? replay, SafeDescriptor? touches, bool isSuccessor)
    {
        var source = ImageFile.OpenSource(files);
        try
        {
            using var record = replay is null ? null : new SafeFileHandle(replay.Number, ownsHandle: false);
            return new Worker(channel, options, source, UffdPolicy.From(options, source, isSuccessor, Log.Lines.WentWrong, record, () => new UffdRecorder(touches ?? UffdRecorder.CreateList(source.Length), source.Length, path: null)));
        }
        catch
        {
            source.Dispose();
            throw;
        }
    }

    /// <summary>The next message; null at the end.</summary>
    private static ChannelMessage? Wait(Channel channel, List<SafeDescriptor> descriptors)
    {
        while (true)
        {
            if (channel.TryReceive(descriptors) is { } message) return message;
            if (channel.IsEnded) return null;
            Span<PollFd> entry = [new PollFd { fd = channel.Socket.Number, events = Poll.POLLIN }];
            _ = Poll.Wait(entry, -1);
        }
    }

    private void Listen(Action<Exception> broken)
    {
        try
        {
            var descriptors = new List<SafeDescriptor>();
            while (Wait(_channel, descriptors) is { } message)
            {
                if (message.Type == ChannelMessageType.Stop)
                {
                    _server.Stop(message.Message);
                    return;
                }

                if (message.Type == ChannelMessageType.Beat) _ = _channel.TrySend(message);
                else if (message.Type == ChannelMessageType.Vm) Take(message, descriptors);
                else if (message.OnError is { } action && _ids.FirstOrDefault(pair => pair.Value == message.Vm).Key is { } vm) Order(vm, message.Type, action);
                foreach (var descriptor in descriptors) descriptor.Dispose();
                descriptors.Clear();
            }

            _isAlone = true;
            Log.Lines.SupervisorEnded(Environment.ProcessId, _ids.Count);
            if (_ids.IsEmpty) _server.Stop();
        }
#pragma warning disable CA1031 // A thread's exception would end the process without a word.
        catch (Exception exception)
        {
            broken(exception);
        }
#pragma warning restore CA1031
    }

    private void Take(ChannelMessage message, List<SafeDescriptor> descriptors)
    {
        UffdVmState? state = null;
        try
        {
            if (descriptors.Count != 5) throw new GuestMemoryException(GuestMemoryError.InvalidMapping, $"A VM was handed to the worker with {descriptors.Count} descriptors instead of 5.");
            var list = VmRecord.ReadList(descriptors[4]);
            UffdMappingList.Validate(list.Mappings, _source.Length);
            state = new UffdVmState(UffdVmState.PagesOf(list.Mappings), descriptors[3]);
            var vm = new UffdVm(descriptors[2], list.Mappings, state, _source, _policy, message.Features);
            if (list.OnError is { } onError) vm.OnError = onError;
            if (message.IsUsed) vm.Recover();
            _ids[vm] = message.Vm;
            _server.Adopt(descriptors[0], descriptors[1], new UCred { pid = list.ProcessId, uid = list.User, gid = list.Group }, vm, list.Mappings);
            descriptors.RemoveRange(0, 3);
            _ = _channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Taken, Vm = message.Vm });
        }
        catch (GuestMemoryException exception) when (exception is not SyscallException { ErrorCode: Errno.EMFILE or Errno.ENFILE })
        {
            state?.Dispose();
            _ = _channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Gone, Vm = message.Vm, Message = exception.Message });
        }
    }

    private void Order(UffdVm vm, ChannelMessageType type, UffdOnError action)
    {
        if (type == ChannelMessageType.StopVm) _server.StopVm(vm, action);
        else vm.OnError = action;
    }

    private void Failed(UffdVm vm, string error)
    {
        if (_ids.TryGetValue(vm, out var id)) _ = _channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Error, Vm = id, Message = error });
    }

    private void Ended(UffdVm vm)
    {
        if (_ids.TryRemove(vm, out var id)) _ = _channel.TrySend(new ChannelMessage { Type = vm.IsOver ? ChannelMessageType.Gone : ChannelMessageType.Closed, Vm = id });
        if (_isAlone && _ids.IsEmpty) _server.Stop();
    }
}
