using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>Accepts connections of VMMs, and receives their hand-overs.</summary>
internal sealed class HandoverListener : IWatched, IDisposable
{
    /// <summary>The name under which a service manager keeps the listening socket that was made here.</summary>
    public const string StoredListener = "listener";

    /// <summary>The name under which a successor is given one that a service manager made.</summary>
    public const string ForeignListener = "socket";

    private readonly UffdConnectionAcceptor _acceptor;
    private readonly UffdHandlerOptions _options;
    private readonly Epoll _epoll;
    private readonly VmRecords _vms;
    private readonly ServedImage _image;
    private readonly Func<int> _connected;
    private readonly Action<VmRecord> _vmAdded;
    private readonly Action<string, uint?> _failed;
    private readonly List<ConnectionRecord> _connections = [];

    private HandoverListener(UffdConnectionAcceptor acceptor, ServedImage image, Supply supply)
    {
        _acceptor = acceptor;
        _image = image;
        _options = supply.Options;
        _epoll = supply.Epoll;
        _vms = supply.Vms;
        _connected = supply.Connected;
        _vmAdded = supply.VmAdded;
        _failed = supply.Failed;
    }

    public UnixListener Listener => _acceptor.Listener;

    public string Path => Listener.Path;

    /// <summary>Whether no hand-over is under way.</summary>
    public bool IsQuiet => !_connections.Exists(static connection => connection.Connection.MillisecondsLeft is not null);

    /// <summary>VMMs that are connected.</summary>
    public int ConnectionCount => _connections.Count;

    /// <summary>Whether VMMs can connect, now or when it is resumed.</summary>
    public bool IsListening => !Listener.Socket.IsClosed;

    /// <summary>Takes over what came with this process, a listening socket and VMs, or listens afresh.</summary>
    /// <param name="image">What the VMs that come are served from.</param>
    /// <param name="supply">What the listeners of a handler share.</param>
    /// <param name="systemd">The service manager, and what came from it.</param>
    /// <param name="restored">VMs that came with this process.</param>
    /// <param name="acceptTimeout">How long the first VMM may take to connect; null for ever.</param>
    public static HandoverListener Open(ServedImage image, Supply supply, Systemd systemd, IReadOnlyCollection<VmRecord> restored, TimeSpan? acceptTimeout)
    {
        var options = supply.Options;
        var inherited = Inherited(image, options, systemd);
        var listener = inherited ?? UnixListener.Open(image.Options.SocketPath, Allowed(options), options.Force);
        var acceptor = new UffdConnectionAcceptor(listener, options.MaxConnections, options.HandoverTimeout, acceptTimeout, supply.Failed);
        var handovers = new HandoverListener(acceptor, image, supply);
        acceptor.Open(supply.Epoll, handovers);
        if (systemd.IsThere && inherited is null) systemd.Store(image.Prefix + StoredListener, listener.Socket);
        foreach (var vm in restored.Where(vm => vm.Image == image)) handovers.Keep(vm);
        return handovers;
    }

    public void Ready()
    {
        while (_acceptor.TryAccept(_connected(), out var accepted))
        {
            HasAccepted = true;
            var connection = new ConnectionRecord(accepted, Receive);
            try
            {
                Add(connection);
            }
            catch (SyscallException exception)
            {
                _failed(exception.Message, null);
                Close(connection);
            }
        }
    }

    /// <summary>Whether a VMM has ever connected.</summary>
    public bool HasAccepted { get; private set; }

    /// <summary>A VMM has come to another socket of the handler.</summary>
    public void StopWaiting() => _acceptor.StopWaiting();

    /// <summary>Lets no VMM in any more; the socket's file is removed, and connections that brought no VM are closed.</summary>
    public void StopListening()
    {
        StopWaiting();
        _acceptor.Dispose();
        foreach (var connection in _connections.FindAll(static connection => connection.Vms.Count == 0)) Close(connection);
    }

    /// <summary>Milliseconds until something is due; -1 where nothing is.</summary>
    public int Timeout()
    {
        var timeout = _acceptor.Timeout;
        foreach (var connection in _connections)
        {
            if (connection.Connection.MillisecondsLeft is { } left) timeout = timeout < 0 ? left : Math.Min(timeout, left);
        }

        return timeout;
    }

    /// <summary>Ends overdue hand-overs; an error where no VMM connected in time.</summary>
    public GuestMemoryException? HandleTimeouts()
    {
        foreach (var connection in _connections.FindAll(static connection => connection.Connection.IsOverdue)) Receive(connection);
        return _acceptor.HandleTimeouts();
    }

    /// <summary>A VM has ended; with the last one that came over a connection that ends too.</summary>
    public void Close(VmRecord vm)
    {
        if (_connections.Find(connection => connection.Vms.Contains(vm)) is not { } connection) return;
        if (connection.Vms.Count == 1)
        {
            Close(connection);
            return;
        }

        connection.Vms.Remove(vm);
        _vms.Remove(vm);
        vm.Dispose();
    }

    /// <summary>Lets no VMM in until <see cref="Resume"/>; those that connect wait.</summary>
    public void Suspend()
    {
        if (IsListening) _acceptor.Suspend();
    }

    public void Resume()
    {
        if (IsListening) _acceptor.Resume();
    }

    public void Dispose() => _acceptor.Dispose();

    private void Add(ConnectionRecord connection)
    {
        _connections.Add(connection);
        connection.Connection.Watch(_epoll, connection);
    }

    /// <summary>Goes on with a VM that an earlier process had.</summary>
    private void Keep(VmRecord vm)
    {
        var peer = new UCred { pid = vm.List.ProcessId, uid = vm.List.User, gid = vm.List.Group };
        var connection = new ConnectionRecord(new UffdConnection(vm.Socket, vm.Process, peer, _options.HandoverTimeout, new UffdHandover(vm.List.Mappings, vm.Userfaultfd)), Receive);
        connection.Vms.Add(vm);
        Add(connection);
        if (vm.List.Name is null) vm.List = vm.List with { Name = UffdVmName.Choose(peer.pid, Path, vm.Id, _vms.Names()) };
        _vms.Add(vm);
    }

    private void Receive(ConnectionRecord connection)
    {
        try
        {
            // What was read may hold more than one.
            while (!connection.Connection.IsEnded && connection.Connection.TryReceive(out var handover)) Keep(connection, handover);
        }
        catch (GuestMemoryException exception)
        {
            _failed($"Process {connection.Connection.Peer.pid} of user {connection.Connection.Peer.uid}: {exception.Message}", connection.Connection.Peer.uid);
            connection.Connection.Refuse();
        }

        if (connection.Connection.IsEnded) Close(connection);
    }

    private void Keep(ConnectionRecord connection, UffdHandover handover)
    {
        if ((IsListening ? _acceptor.WhyRefused(connection.Connection.Peer, _vms.Count, connection.Vms.Count) : $"A VM of process {connection.Connection.Peer.pid} was refused: no VM is served from the image '{_image.Name}' any more.") is { } why)
        {
            handover.Close();
            _failed(why, connection.Connection.Peer.uid);
            // The VMs that came before go on.
            if (connection.Vms.Count == 0) connection.Connection.IsEnded = true;
            return;
        }

        VmRecord vm;
        try
        {
            UffdMappingList.Validate(handover.Mappings, _image.Length);
            var id = _vms.NextId();
            vm = VmRecord.Create(id, UffdVmName.Choose(connection.Connection.Peer.pid, Path, id, _vms.Names()), connection.Connection, handover);
            vm.Image = _image;
        }
        catch
        {
            handover.Close();
            throw;
        }

        connection.Vms.Add(vm);
        _vms.Add(vm);
        _vmAdded(vm);
    }

    private void Close(ConnectionRecord connection)
    {
        if (!_connections.Remove(connection)) return;
        foreach (var vm in connection.Vms) _vms.Remove(vm);
        connection.Connection.Unwatch();
        // The VMM hears that it is served no more; the worker has duplicates.
        UnixSocket.Shutdown(connection.Socket);
        connection.Dispose();
    }

    /// <summary>The listening socket of the image among what came with this process: by its name, or for the image without a prefix any that is no other one's.</summary>
    private static UnixListener? Inherited(ServedImage image, UffdHandlerOptions options, Systemd systemd)
    {
        foreach (var item in systemd.Descriptors.ToArray())
        {
            var (prefix, name) = ServedImage.Split(item.Name);
            // A service manager that makes the sockets of several images calls each as the image (FileDescriptorName=).
            var isNamed = prefix.Length == 0 && image.Options.IsCalled(name) && name is not (StoredListener or ForeignListener);
            if (!isNamed && prefix != image.Prefix) continue;
            if (!isNamed && prefix.Length > 0 && name is not (StoredListener or ForeignListener)) continue;
            if (UnixSocket.ListeningPath(item.Descriptor) is not { } path) continue;
            systemd.Descriptors.Remove(item);
            return UnixListener.Adopt(item.Descriptor, path, Allowed(options), isOurs: name == StoredListener && !isNamed);
        }

        return null;
    }

    /// <summary>What the listeners of a handler share.</summary>
    /// <param name="Options">The handler's.</param>
    /// <param name="Epoll">What waits for the descriptors.</param>
    /// <param name="Vms">Where VMs go.</param>
    /// <param name="Connected">How many VMMs are connected to all of them.</param>
    /// <param name="VmAdded">Called with each VM that hands its memory over.</param>
    /// <param name="Failed">Called with what goes wrong, and with the user whose process has caused it; null where none has.</param>
    internal sealed record Supply(UffdHandlerOptions Options, Epoll Epoll, VmRecords Vms, Func<int> Connected, Action<VmRecord> VmAdded, Action<string, uint?> Failed);

    /// <summary>Who may connect beside the user of this process and root.</summary>
    private static AllowedPeers Allowed(UffdHandlerOptions options) =>
        AllowedPeers.Find(options.User is null ? options.AllowUser : [.. options.AllowUser, options.User], options.AllowGroup);
}
