using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>
/// Supervisor and worker on threads of one process, for a rehearsal: both go through everything from a VMM's connection to its pages
/// once, so that the first real VM waits for nothing that is compiled or loaded on first use.
/// </summary>
internal sealed class RehearsedHandler : IDisposable
{
    private readonly SafeDescriptor _wake = EventFd.Create();
    private readonly Epoll _epoll = new();
    private readonly VmRecords _vms = new(new Systemd());
    private readonly Channel _channel;
    private readonly ServedImage _image;
    private readonly HandoverListener _handovers;
    private readonly Thread _supervisor;
    private readonly Thread _worker;
    private volatile bool _stopping;

    private RehearsedHandler(UffdHandlerOptions options, UffdPolicy policy, PageSource source)
    {
        var (near, far) = UnixSocket.CreatePair(nonBlocking: true);
        _channel = new Channel(near);
        _epoll.Add(_wake, _wake);
        _epoll.Add(near, _channel);
        _image = new ServedImage(options.OnlyImage, "") { Length = source.Length };
        _handovers = VmReceiver.Open(_image, new VmReceiver.Supply(options, _epoll, _vms, () => 0, Offer, static (_, _) => { }), new Systemd(), [], acceptTimeout: null);
        _supervisor = new Thread(Supervise) { IsBackground = true, Name = "uffd-rehearsal" };
        _worker = new Thread(() => Work(new Channel(far), options, policy, source)) { IsBackground = true, Name = "uffd-rehearsal" };
        _supervisor.Start();
        _worker.Start();
    }

    public static IDisposable Start(string path, UffdPolicy policy, PageSource source) => new RehearsedHandler(UffdRehearsal.Options(path), policy, source);

    public void Dispose()
    {
        _ = _vms.Figures([_image], null, default);
        _ = _channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Stop });
        _worker.Join();
        _stopping = true;
        EventFd.Signal(_wake);
        _supervisor.Join();
        _channel.Dispose();
        _epoll.Dispose();
        _wake.Dispose();
    }

    private static void Work(Channel channel, UffdHandlerOptions options, UffdPolicy policy, PageSource source)
    {
        using var end = channel;
        using var worker = new Worker(channel, options);
        worker.Add(new UffdImageService(options.OnlyImage, source, policy));
        try
        {
            worker.Serve(static _ => { });
        }
        catch (GuestMemoryException)
        {
            // The real one will say it.
        }
    }

    private void Supervise()
    {
        var descriptors = new List<SafeDescriptor>();
        try
        {
            while (!_stopping)
            {
                var ready = _epoll.Wait(_handovers.Timeout);
                for (var i = 0; i < ready; i++)
                {
                    if (_epoll.Owner(i) is IWatched watched) watched.Ready();
                    else if (_epoll.Owner(i) is Channel channel) Receive(channel, descriptors);
                }
            }
        }
        catch (GuestMemoryException)
        {
            // The real one will say it.
        }
        finally
        {
            // Who waits for a page waits no longer.
            _handovers.Dispose();
            _vms.Dispose();
        }
    }

    private void Receive(Channel channel, List<SafeDescriptor> descriptors)
    {
        while (channel.TryReceive(descriptors) is { } message)
        {
            if (message.Type != ChannelMessageType.Gone || _vms.Find(message.Vm) is not { } vm) continue;
            _vms.Remove(vm);
            _handovers.VmEnded(vm.Connection);
        }

        if (channel.IsEnded) _epoll.Remove(channel.Socket);
    }

    private void Offer(VmRecord vm) => _ = Supervisor.TryOffer(_channel, vm);
}
