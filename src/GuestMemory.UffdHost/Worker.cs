using System.Collections.Concurrent;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>
/// The process that answers faults, and may die at any moment. All that it knows of a VM it was given; what it learns that a
/// successor must know it writes into the VM's state, which is shared.
/// </summary>
internal sealed class Worker : IDisposable
{
    private readonly Channel _channel;
    private readonly UffdHandlerOptions _options;
    private readonly UffdServer _server;
    private readonly ArrivingImage _arriving = new();

    // By their names. Of the thread that hears the supervisor, which is the first thread before it serves.
    private readonly Dictionary<string, UffdImageService> _images = new(StringComparer.OrdinalIgnoreCase);
    private readonly ConcurrentDictionary<UffdVm, int> _ids = new();
    private volatile bool _isAlone;

    public Worker(Channel channel, UffdHandlerOptions options)
    {
        _channel = channel;
        _options = options;
        _server = new UffdServer(options) { Failed = Failed, Ended = Ended };
    }

    /// <summary>Serves what the supervisor gives until it says stop; when the supervisor is gone, until every VM has ended.</summary>
    public static int Run()
    {
        using var channel = new Channel(OwnSession.Inherit(WorkerProcess.ChannelNumber));
        if (Wait(channel, []) is not { Type: ChannelMessageType.Start, Options: { } options } start) return 0;
        using var worker = new Worker(channel, options);
        ChannelMessage? opening = null;
        try
        {
            if (!worker.TakeImages(start.IsUsed, ref opening)) return 0;
            opening = null;
            var first = worker._images.Values.First();
            // For a successor that was not started before, VMs wait every millisecond.
            if (!start.IsUsed || start.IsSpare) UffdRehearsal.Run(first.Policy, first.Source, RehearsedHandler.Start);
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
            _ = channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Failed, Image = opening?.Image, Number = opening?.Number ?? 0, ErrorId = exception.Error.ToString(), Message = exception.Message });
            return 1;
        }
    }

    /// <summary>Takes an image over, before <see cref="Serve"/>.</summary>
    public void Add(UffdImageService image)
    {
        _server.Add(image);
        _images.Add(image.Name, image);
    }

    public void Dispose()
    {
        _server.Dispose();
        _arriving.Dispose();
    }

    /// <summary>Serves until it is told to stop.</summary>
    /// <param name="broken">Called where it can hear no more.</param>
    public void Serve(Action<Exception> broken)
    {
        var listener = new Thread(() => Listen(broken)) { IsBackground = true, Name = "uffd-control" };
        listener.Start();
        _ = _channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Ready });
        _server.Run();
    }

    /// <summary>Opens the images that come until it is told to begin; false where that does not come.</summary>
    /// <param name="isSuccessor">Whether another worker has begun with them.</param>
    /// <param name="opening">The image that is being opened.</param>
    /// <exception cref="GuestMemoryException">An image cannot be opened.</exception>
    private bool TakeImages(bool isSuccessor, ref ChannelMessage? opening)
    {
        var descriptors = new List<SafeDescriptor>();
        var opened = new List<ChannelMessage>();
        while (Wait(_channel, descriptors) is { } message)
        {
            if (message.Type == ChannelMessageType.Begin)
            {
                // Not before: the supervisor, which sends, would not hear it.
                foreach (var image in opened) SendReady(_images[image.Image!], image);
                return opened.Count > 0;
            }

            if (_arriving.TryTake(message, descriptors)) continue;
            if (message is not { Type: ChannelMessageType.AddImage, NewImage: { } options }) return false;
            opening = message;
            Add(_arriving.Open(_options, options, message, isSuccessor));
            opened.Add(message);
        }

        return false;
    }

    private void SendReady(UffdImageService image, ChannelMessage message) =>
        _ = _channel.TrySendPatiently(new ChannelMessage { Type = ChannelMessageType.ImageReady, Image = image.Name, Number = message.Number, ImageLength = image.Source.Length, Layout = image.Source.Layout });

    /// <summary>An image that comes while VMs of others are served.</summary>
    private void AddImage(ChannelMessage message)
    {
        UffdImageService? image = null;
        try
        {
            image = _arriving.Open(_options, message.NewImage!, message, isSuccessor: false);
            _server.AddImage(image);
            _images[image.Name] = image;
            SendReady(image, message);
        }
        catch (GuestMemoryException exception)
        {
            image?.Dispose();
            _ = _channel.TrySend(new ChannelMessage { Type = ChannelMessageType.ImageFailed, Image = message.Image, Number = message.Number, ErrorId = exception.Error.ToString(), Message = exception.Message });
        }
    }

    private void RemoveImage(string name)
    {
        if (_images.Remove(name)) _server.DropImage(name);
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
                else if (_arriving.TryTake(message, descriptors)) continue;
                else if (message is { Type: ChannelMessageType.AddImage, NewImage: not null }) AddImage(message);
                else if (message is { Type: ChannelMessageType.RemoveImage, Image: { } image }) RemoveImage(image);
                else if (message.Type == ChannelMessageType.Vm) Take(message, descriptors);
                else if (message.Type == ChannelMessageType.Live) BeginLive(message.Vm, descriptors);
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
            if (!_images.TryGetValue(message.Image ?? "", out var image)) throw UffdImage.NotFound(message.Image ?? "", "its supervisor's sockets");
            var list = VmRecord.ReadList(descriptors[4]);
            UffdMappingList.Validate(list.Mappings, image.Source.Length);
            state = new UffdVmState(UffdVmState.PagesOf(list.Mappings), descriptors[3]);
            var vm = new UffdVm(descriptors[2], list.Mappings, state, image.Source, image.Policy, message.Features);
            if (list.OnError is { } onError) vm.OnError = onError;
            if (message.IsUsed)
            {
                vm.CaughtUp = () => _ = _channel.TrySend(new ChannelMessage { Type = ChannelMessageType.CaughtUp, Vm = message.Vm });
                vm.Recover();
            }

            _ids[vm] = message.Vm;
            _server.Adopt(descriptors[0], descriptors[1], new UCred { pid = list.ProcessId, uid = list.User, gid = list.Group }, vm, list.Mappings, image);
            descriptors.RemoveRange(0, 3);
            _ = _channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Taken, Vm = message.Vm });
        }
        catch (GuestMemoryException exception) when (exception is not SyscallException { ErrorCode: Errno.EMFILE or Errno.ENFILE })
        {
            state?.Dispose();
            _ = _channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Gone, Vm = message.Vm, Message = exception.Message });
        }
    }

    /// <summary>Has the memory of a VM exported while it runs, on a thread of its own. Where that cannot be the connection ends.</summary>
    private void BeginLive(int id, List<SafeDescriptor> descriptors)
    {
        if (descriptors.Count != 4 || _ids.FirstOrDefault(pair => pair.Value == id).Key is not { } vm) return;
        SafeDescriptor[] taken = [.. descriptors];
        descriptors.Clear();
        new Thread(() =>
        {
            try
            {
                using var channel = new LiveExportChannel(taken[0], output => _server.BeginLive(vm, output, taken[1], taken[2], taken[3]));
                channel.Serve();
            }
#pragma warning disable CA1031 // It concerns this export alone, whose connection ends.
            catch (Exception exception)
            {
                Log.Lines.WentWrong(exception.Message);
            }
#pragma warning restore CA1031
            foreach (var descriptor in taken) descriptor.Dispose();
        }) { IsBackground = true, Name = "uffd-live" }.Start();
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
