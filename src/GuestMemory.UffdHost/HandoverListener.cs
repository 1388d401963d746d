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
    private readonly Func<ulong> _imageLength;
    private readonly Action<VmRecord> _vmAdded;
    private readonly Action<string, uint?> _failed;
    private readonly List<ConnectionRecord> _connections = [];

    private HandoverListener(UffdConnectionAcceptor acceptor, UffdHandlerOptions options, Epoll epoll, VmRecords vms, Func<ulong> imageLength, Action<VmRecord> vmAdded, Action<string, uint?> failed)
    {
        _acceptor = acceptor;
        _options = options;
        _epoll = epoll;
        _vms = vms;
        _imageLength = imageLength;
        _vmAdded = vmAdded;
        _failed = failed;
    }

    public UnixListener Listener => _acceptor.Listener;

    public string Path => Listener.Path;

    /// <summary>Whether no hand-over is under way.</summary>
    public bool IsQuiet => !_connections.Exists(static connection => connection.Connection.MillisecondsLeft is not null);

    /// <summary>Takes over what came with this process, a listening socket and VMs, or listens afresh.</summary>
    /// <param name="options">The handler's.</param>
    /// <param name="systemd">The service manager, and what came from it.</param>
    /// <param name="epoll">What waits for the descriptors.</param>
    /// <param name="vms">Where VMs go.</param>
    /// <param name="hasImages">Whether the image is the one that VMs before this process had.</param>
    /// <param name="imageLength">The bytes of the image.</param>
    /// <param name="vmAdded">Called with each VM that hands its memory over.</param>
    /// <param name="failed">Called with what goes wrong, and with the user whose process has caused it; null where none has.</param>
    public static HandoverListener Open(UffdHandlerOptions options, Systemd systemd, Epoll epoll, VmRecords vms, bool hasImages, Func<ulong> imageLength, Action<VmRecord> vmAdded, Action<string, uint?> failed)
    {
        var restored = vms.Restore(hasImages, error => failed(error, null));
        var inherited = Inherited(options, systemd);
        var listener = inherited ?? UnixListener.Open(options.SocketPath, Allowed(options), options.Force);
        var acceptor = new UffdConnectionAcceptor(listener, options.MaxConnections, options.HandoverTimeout, restored.Count > 0 || vms.Total > 0 ? null : options.AcceptTimeout, failed);
        var handovers = new HandoverListener(acceptor, options, epoll, vms, imageLength, vmAdded, failed);
        acceptor.Open(epoll, handovers);
        if (systemd.IsThere && inherited is null) systemd.Store(StoredListener, listener.Socket);
        foreach (var vm in restored) handovers.Keep(vm);
        return handovers;
    }

    public void Ready()
    {
        while (_acceptor.TryAccept(_connections.Count, out var accepted))
        {
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
    public void Suspend() => _acceptor.Suspend();

    public void Resume() => _acceptor.Resume();

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
        if (_acceptor.WhyRefused(connection.Connection.Peer, _vms.Count, connection.Vms.Count) is { } why)
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
            UffdMappingList.Validate(handover.Mappings, _imageLength());
            var id = _vms.NextId();
            vm = VmRecord.Create(id, UffdVmName.Choose(connection.Connection.Peer.pid, Path, id, _vms.Names()), connection.Connection, handover);
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

    private static UnixListener? Inherited(UffdHandlerOptions options, Systemd systemd)
    {
        foreach (var item in systemd.Descriptors.ToArray())
        {
            if (UnixSocket.ListeningPath(item.Descriptor) is not { } path) continue;
            systemd.Descriptors.Remove(item);
            return UnixListener.Adopt(item.Descriptor, path, Allowed(options), isOurs: item.Name == StoredListener);
        }

        return null;
    }

    /// <summary>Who may connect beside the user of this process and root.</summary>
    private static AllowedPeers Allowed(UffdHandlerOptions options) =>
        AllowedPeers.Find(options.User is null ? options.AllowUser : [.. options.AllowUser, options.User], options.AllowGroup);
}
