using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>Where VMs come in: the listening socket, the connections, and the hand-overs that come over them.</summary>
internal sealed class Reception : IWatched, IDisposable
{
    /// <summary>The name under which a service manager keeps the listening socket that was made here.</summary>
    public const string StoredListener = "listener";

    /// <summary>The name under which a successor is given one that a service manager made.</summary>
    public const string ForeignListener = "socket";

    private readonly UffdEntrance _entrance;
    private readonly UffdHandlerOptions _options;
    private readonly Epoll _epoll;
    private readonly KeptVms _vms;
    private readonly Func<ulong> _imageLength;
    private readonly Action<KeptVm> _came;
    private readonly Action<string> _failed;
    private readonly List<KeptConnection> _connections = [];

    private Reception(UffdEntrance entrance, UffdHandlerOptions options, Epoll epoll, KeptVms vms, Func<ulong> imageLength, Action<KeptVm> came, Action<string> failed)
    {
        _entrance = entrance;
        _options = options;
        _epoll = epoll;
        _vms = vms;
        _imageLength = imageLength;
        _came = came;
        _failed = failed;
    }

    public UnixListener Listener => _entrance.Listener;

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
    /// <param name="came">Called with each VM that hands its memory over.</param>
    /// <param name="failed">Called with what goes wrong.</param>
    public static Reception Open(UffdHandlerOptions options, Systemd systemd, Epoll epoll, KeptVms vms, bool hasImages, Func<ulong> imageLength, Action<KeptVm> came, Action<string> failed)
    {
        var restored = vms.Restore(hasImages, failed);
        var inherited = Inherited(options, systemd);
        var listener = inherited ?? UnixListener.Open(options.SocketPath, Allowed(options), options.Force);
        var entrance = new UffdEntrance(listener, options.MaxConnections, options.HandoverTimeout, restored.Count > 0 || vms.Total > 0 ? null : options.AcceptTimeout, failed);
        var reception = new Reception(entrance, options, epoll, vms, imageLength, came, failed);
        entrance.Open(epoll, reception);
        if (systemd.IsThere && inherited is null) systemd.Store(StoredListener, listener.Socket);
        foreach (var vm in restored) reception.Keep(vm);
        return reception;
    }

    public void Ready()
    {
        while (_entrance.TryAccept(_connections.Count, out var accepted))
        {
            var connection = new KeptConnection(accepted, Receive);
            try
            {
                Add(connection);
            }
            catch (SyscallException exception)
            {
                _failed(exception.Message);
                Close(connection);
            }
        }
    }

    /// <summary>Milliseconds until something is due; -1 where nothing is.</summary>
    public int Timeout()
    {
        var timeout = _entrance.Timeout;
        foreach (var connection in _connections)
        {
            if (connection.Connection.MillisecondsLeft is { } left) timeout = timeout < 0 ? left : Math.Min(timeout, left);
        }

        return timeout;
    }

    /// <summary>Does what is due; an error where nobody has come in time.</summary>
    public GuestMemoryException? LookAtTheClock()
    {
        foreach (var connection in _connections.FindAll(static connection => connection.Connection.IsOverdue)) Receive(connection);
        return _entrance.LookAtTheClock();
    }

    /// <summary>A VM has ended; with the last one that came over a connection that ends too.</summary>
    public void Close(KeptVm vm)
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
    public void Suspend() => _entrance.Suspend();

    public void Resume() => _entrance.Resume();

    public void Dispose() => _entrance.Dispose();

    private void Add(KeptConnection connection)
    {
        _connections.Add(connection);
        connection.Connection.Watch(_epoll, connection);
    }

    /// <summary>Goes on with a VM that an earlier process had.</summary>
    private void Keep(KeptVm vm)
    {
        var peer = new UCred { pid = vm.List.ProcessId, uid = vm.List.User, gid = vm.List.Group };
        var connection = new KeptConnection(new UffdConnection(vm.Socket, vm.Process, peer, _options.HandoverTimeout, new UffdHandover(vm.List.Mappings, vm.Userfaultfd)), Receive);
        connection.Vms.Add(vm);
        Add(connection);
        if (vm.List.Name is null) vm.List = vm.List with { Name = UffdVmName.Choose(peer.pid, Path, vm.Id, _vms.Names()) };
        _vms.Add(vm);
    }

    private void Receive(KeptConnection connection)
    {
        try
        {
            // What was read may hold more than one.
            while (!connection.Connection.IsEnded && connection.Connection.TryReceive(out var handover)) Keep(connection, handover);
        }
        catch (GuestMemoryException exception)
        {
            _failed($"Process {connection.Connection.Peer.pid} of user {connection.Connection.Peer.uid}: {exception.Message}");
            connection.Connection.Refuse();
        }

        if (connection.Connection.IsEnded) Close(connection);
    }

    private void Keep(KeptConnection connection, UffdHandover handover)
    {
        if (_entrance.WhyRefused(connection.Connection.Peer, _vms.Count, connection.Vms.Count) is { } why)
        {
            handover.Close();
            _failed(why);
            // The VMs that came before go on.
            if (connection.Vms.Count == 0) connection.Connection.IsEnded = true;
            return;
        }

        KeptVm vm;
        try
        {
            UffdMappingList.Validate(handover.Mappings, _imageLength());
            var id = _vms.NextId();
            vm = KeptVm.Create(id, UffdVmName.Choose(connection.Connection.Peer.pid, Path, id, _vms.Names()), connection.Connection, handover);
        }
        catch
        {
            handover.Close();
            throw;
        }

        connection.Vms.Add(vm);
        _vms.Add(vm);
        _came(vm);
    }

    private void Close(KeptConnection connection)
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
    private static AllowedPeers? Allowed(UffdHandlerOptions options) =>
        AllowedPeers.Find(options.User is null ? options.AllowUser : [.. options.AllowUser, options.User], options.AllowGroup);
}
