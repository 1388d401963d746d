using System.Diagnostics;
using System.Text.Json;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>
/// The supervisor that this process takes over from, as this process sees it. What it keeps comes under the names by which a service
/// manager keeps it, and goes where such descriptors go (<see cref="Systemd.Descriptors"/>). Until it has let go, it can take everything back.
/// </summary>
internal sealed class Predecessor : IWatched, IDisposable
{
    /// <summary>The list of touched pages, which comes with the image.</summary>
    public const string TouchesName = "touches";

    private const string RecordName = "handler";

    // No image's: it has no name.
    private const string OfRemoved = "/";
    private const string EndedName = "ended";
    private const string MetricsName = "metrics";
    private const string WorkerName = "worker";
    private const int MaxRecordBytes = 64 << 20;
    private const int Pause = 1;

    // How long it is waited for once this process serves; it has to tell the service manager, which may be busy.
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(5);

    private readonly Channel _channel;
    private readonly Systemd _systemd;
    private readonly List<(string Name, SafeDescriptor Descriptor)> _others = [];
    private readonly List<SafeDescriptor> _received = [];
    private Epoll? _epoll;

    private Predecessor(Channel channel, Systemd systemd)
    {
        _channel = channel;
        _systemd = systemd;
        systemd.IsHeld = true;
    }

    /// <summary>What it says of the handler.</summary>
    public HandedOver Record { get; private set; } = new();

    /// <summary>Gives a successor what a service manager does not keep.</summary>
    /// <exception cref="GuestMemoryException">UpgradeFailed.</exception>
    public static void Give(Successor successor, HandedOver record, ControlServer control, SafeDescriptor? worker, SafeDescriptor? metrics)
    {
        using var file = JsonFile.Create("uffd-handler", record, HostJson.Default.HandedOver);
        successor.Give(RecordName, file);
        foreach (var (name, descriptor) in control.Parts()) successor.Give(name, descriptor);
        if (worker is not null) successor.Give(WorkerName, worker);
        if (metrics is not null) successor.Give(MetricsName, metrics);
    }

    /// <summary>Gives a successor what was counted, when no worker counts any more.</summary>
    /// <exception cref="GuestMemoryException">UpgradeFailed.</exception>
    public static void GiveFigures(Successor successor, VmRecords vms, IEnumerable<ServedImage> images)
    {
        foreach (var image in images.Append(null))
        {
            using var ended = vms.EndedFigures(image);
            successor.Give((image?.Prefix ?? OfRemoved) + EndedName, ended);
        }
    }

    /// <summary>The supervisor that has started this process; the image has come from it then.</summary>
    /// <exception cref="GuestMemoryException">UpgradeFailed: it has ended.</exception>
    public static Predecessor Meet(Systemd systemd)
    {
        UffdDebug.AtStep(1);
        var predecessor = new Predecessor(new Channel(OwnSession.Inherit(Successor.ChannelNumber)), systemd);
        predecessor.Await(ChannelMessageType.TakeOver);
        return predecessor;
    }

    /// <summary>Says that a worker is ready, and takes the VMs.</summary>
    /// <exception cref="GuestMemoryException">UpgradeFailed: it has ended.</exception>
    public void TakeVms()
    {
        _ = _channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Ready });
        UffdDebug.AtStep(2);
        Await(ChannelMessageType.TakeOver);
        using var file = Take(RecordName) ?? throw new GuestMemoryException(GuestMemoryError.StateMismatch, $"The part '{RecordName}' of the handler was not handed over.");
        Record = Read(file);
    }

    /// <summary>
    /// Says that the VMs can be served, and waits until they are to be. Where the predecessor dies meanwhile, they are: its worker is ended
    /// first, since two must not serve a VM.
    /// </summary>
    public void AwaitTurn()
    {
        _ = _channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Prepared });
        UffdDebug.AtStep(3);
        try
        {
            Await(ChannelMessageType.Serve);
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.UpgradeFailed)
        {
            Log.Lines.PredecessorEnded();
            EndWorker();
        }

        UffdDebug.AtStep(4);
    }

    /// <summary>What was counted for VMs of an image, or of those that were removed, that have ended; null where the predecessor could not say it.</summary>
    public SafeDescriptor? TakeFigures(ServedImage? image) => Take((image?.Prefix ?? OfRemoved) + EndedName);

    /// <summary>Says that the VMs are served, and waits until the predecessor has ended, which cannot take them back any more.</summary>
    /// <param name="epoll">What waits for its end where that takes longer. Until then the service manager does not hear this process.</param>
    public void AwaitEnd(Epoll epoll)
    {
        UffdDebug.AtStep(5);
        _ = _channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Serving });
        var started = Stopwatch.GetTimestamp();
        while (!UnixSocket.HasPeerEnded(_channel.Socket) && Stopwatch.GetElapsedTime(started) < s_patience) Thread.Sleep(Pause);
        _epoll = epoll;
        epoll.AddEnd(_channel.Socket, this);
    }

    /// <summary>It has ended.</summary>
    public void Ready()
    {
        _systemd.IsHeld = false;
        _epoll!.Remove(_channel.Socket);
        Dispose();
    }

    /// <summary>The control socket and who is connected to it.</summary>
    public IReadOnlyList<(string Name, SafeDescriptor Descriptor)> TakeControl()
    {
        var parts = _others.FindAll(static part => ControlServer.IsPart(part.Name));
        _ = _others.RemoveAll(static part => ControlServer.IsPart(part.Name));
        return parts;
    }

    /// <summary>The list of touched pages of an image; null where they are not recorded.</summary>
    public SafeDescriptor? TakeTouches(ServedImage image) => Take(image.Prefix + TouchesName);

    /// <summary>The listening socket of the metrics; null where there is none.</summary>
    public SafeDescriptor? TakeMetrics() => Take(MetricsName);

    /// <summary>Says why this process cannot take over.</summary>
    public void Refuse(GuestMemoryException exception) =>
        _ = _channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Failed, ErrorId = exception.Error.ToString(), Message = exception.Message });

    public void Dispose()
    {
        foreach (var (_, descriptor) in _others) descriptor.Dispose();
        _channel.Dispose();
    }

    private static HandedOver Read(SafeDescriptor file)
    {
        try
        {
            return JsonFile.Read(file, MaxRecordBytes, HostJson.Default.HandedOver);
        }
        catch (Exception exception) when (exception is JsonException or IOException or NotSupportedException)
        {
            throw new GuestMemoryException(GuestMemoryError.UpgradeFailed, $"What was handed over of the handler cannot be read: {JsonErrorText.Of(exception)}", exception);
        }
    }

    private SafeDescriptor? Take(string name)
    {
        var at = _others.FindIndex(part => part.Name == name);
        if (at < 0) return null;
        var taken = _others[at].Descriptor;
        _others.RemoveAt(at);
        return taken;
    }

    private void EndWorker()
    {
        using var worker = Take(WorkerName);
        if (worker is null) return;
        Span<PollFd> entry = [new PollFd { fd = worker.Number, events = Poll.POLLIN }];
        do _ = Pidfd.TrySignal(worker, Pidfd.SIGKILL);
        while (Poll.Wait(entry, -1) <= 0);
    }

    /// <summary>Receives until a message of a type comes.</summary>
    private void Await(ChannelMessageType last)
    {
        while (true)
        {
            if (_channel.TryReceive(_received) is not { } message)
            {
                if (_channel.IsEnded) throw new GuestMemoryException(GuestMemoryError.UpgradeFailed, "The process that was to be taken over from has ended.");
                Span<PollFd> entry = [new PollFd { fd = _channel.Socket.Number, events = Poll.POLLIN }];
                _ = Poll.Wait(entry, -1);
                continue;
            }

            if (message.Type == last) return;
            if (message.Type != ChannelMessageType.Kept || _received.Count != 1 || message.Message is not { } name)
                throw new GuestMemoryException(GuestMemoryError.StateMismatch, $"The process that was to be taken over from sent {message.Type} with {_received.Count} descriptors, which this program does not know.");
            var isOther = name is RecordName or MetricsName or WorkerName || ServedImage.Split(name).Name is TouchesName or EndedName || ControlServer.IsPart(name);
            (isOther ? _others : _systemd.Descriptors).Add((name, _received[0]));
            _received.Clear();
        }
    }
}
