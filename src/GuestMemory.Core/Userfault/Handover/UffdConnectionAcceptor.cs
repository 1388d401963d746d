using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>Where VMMs come in: the listening socket, who may connect, and how many.</summary>
/// <param name="listener">The socket; taken over.</param>
/// <param name="maxConnections">How many VMMs may be connected at once.</param>
/// <param name="handoverTimeout">How long one may take to hand its memory over.</param>
/// <param name="acceptTimeout">How long the first one may take to come; null for ever.</param>
/// <param name="failed">Called with what goes wrong, and with the user whose process has caused it; null where none has.</param>
internal sealed class UffdConnectionAcceptor(UnixListener listener, int maxConnections, TimeSpan handoverTimeout, TimeSpan? acceptTimeout, Action<string, uint?> failed) : IDisposable
{
    private const int AcceptPause = 100;

    // A VMM hands over one VM, some a few.
    private const int MaxVmsOfConnection = 64;

    private Epoll? _epoll;
    private object? _owner;
    private long _pausedUntil;
    private long _deadline;
    private bool _isSuspended;

    public UnixListener Listener => listener;

    /// <summary>Milliseconds until something is due; -1 where nothing is.</summary>
    public int Timeout
    {
        get
        {
            var timeout = _pausedUntil == 0 ? -1 : AcceptPause;
            if (_deadline == 0) return timeout;
            var left = (int)Math.Clamp(Math.Ceiling(Stopwatch.GetElapsedTime(Stopwatch.GetTimestamp(), _deadline).TotalMilliseconds), 0, int.MaxValue);
            return timeout < 0 ? left : Math.Min(timeout, left);
        }
    }

    /// <summary>Has a loop tell its owner who comes.</summary>
    public void Open(Epoll epoll, object owner)
    {
        _epoll = epoll;
        _owner = owner;
        epoll.Add(listener.Socket, owner);
        if (acceptTimeout is { } limit) _deadline = Stopwatch.GetTimestamp() + (long)(limit.TotalSeconds * Stopwatch.Frequency);
    }

    /// <summary>A VMM has come to another socket of the handler: none needs to come to this one.</summary>
    public void StopWaiting() => _deadline = 0;

    /// <summary>Lets no VMM in; those that connect wait in the queue of the socket.</summary>
    public void Suspend()
    {
        if (_isSuspended) return;
        _isSuspended = true;
        if (_pausedUntil == 0) _epoll!.Remove(listener.Socket);
    }

    /// <summary>Lets VMMs in again.</summary>
    public void Resume()
    {
        if (!_isSuspended) return;
        _isSuspended = false;
        if (_pausedUntil == 0) _epoll!.Add(listener.Socket, _owner!);
    }

    /// <summary>The next VMM that waits and may come in; others are turned away. The caller owns it.</summary>
    /// <param name="connections">How many are connected.</param>
    /// <param name="connection">The connection.</param>
    public bool TryAccept(int connections, [NotNullWhen(true)] out UffdConnection? connection)
    {
        connection = null;
        while (true)
        {
            var error = 0;
            var socket = _pausedUntil != 0 || _isSuspended ? null : UnixSocket.TryAccept(listener.Socket, out error);
            if (socket is null)
            {
                if (_pausedUntil != 0 || _isSuspended || error == Errno.EAGAIN) return false;
                if (error is Errno.ECONNABORTED or Errno.EINTR) continue;
                Pause(error);
                return false;
            }

            var peer = UnixSocket.PeerCredentials(socket);
            if (!listener.Allows(peer, socket)) failed($"Process {peer.pid} of user {peer.uid} may not connect: only root, the handler's own user, and the users and groups of AllowUser and AllowGroup may.", peer.uid);
            else if (connections >= maxConnections) failed($"Process {peer.pid} of user {peer.uid} was refused: {connections} VMMs are connected, which is the limit (MaxConnections).", peer.uid);
            else if (Pidfd.TryOfPeer(socket, peer, out error) is { } process)
            {
                _deadline = 0;
                connection = new UffdConnection(socket, process, peer, handoverTimeout);
                return true;
            }
            else if (error is Errno.EMFILE or Errno.ENFILE)
            {
                socket.Dispose();
                Pause(error);
                return false;
            }
            else if (error != Errno.ESRCH)
            {
                failed($"Process {peer.pid} of user {peer.uid} was refused, since its end could not be noticed ({Errno.Name(error)}).", peer.uid);
            }

            socket.Dispose();
        }
    }

    /// <summary>Why one more VM is refused; null where it is not. The limit of connections is one of VMs, too: a connection may bring many.</summary>
    /// <param name="peer">Who hands it over.</param>
    /// <param name="vms">How many are served.</param>
    /// <param name="vmsOfConnection">How many of them came over this connection.</param>
    public string? WhyRefused(UCred peer, int vms, int vmsOfConnection)
    {
        if (vms >= maxConnections) return $"A VM of process {peer.pid} of user {peer.uid} was refused: {vms} VMs are served, which is the limit (MaxConnections).";
        return vmsOfConnection < MaxVmsOfConnection ? null
            : $"A VM of process {peer.pid} of user {peer.uid} was refused: {vmsOfConnection} came over its connection, which is the limit.";
    }

    /// <summary>Does what is due; an error where nobody has come in time.</summary>
    public GuestMemoryException? HandleTimeouts()
    {
        var now = Stopwatch.GetTimestamp();
        if (_pausedUntil != 0 && now >= _pausedUntil && !listener.Socket.IsClosed)
        {
            _pausedUntil = 0;
            if (!_isSuspended) _epoll!.Add(listener.Socket, _owner!);
        }

        return _deadline == 0 || now < _deadline ? null
            : new GuestMemoryException(GuestMemoryError.HandlerFailed, $"No VMM has connected within {acceptTimeout!.Value.TotalSeconds:0.#} s, the AcceptTimeout.");
    }

    public void Dispose()
    {
        if (listener.Socket.IsClosed) return;
        if (_pausedUntil == 0 && !_isSuspended) _epoll?.Remove(listener.Socket);
        listener.Dispose();
    }

    /// <summary>The connection stays in the queue; trying again at once would only burn the processor.</summary>
    private void Pause(int error)
    {
        failed(new SyscallException("accept4", error, "Accepting a connection",
            remedy: error == Errno.EMFILE ? "Raise the limit of open files (LimitNOFILE=, 'ulimit -n')." : null).Message, null);
        _epoll!.Remove(listener.Socket);
        _pausedUntil = Stopwatch.GetTimestamp() + (Stopwatch.Frequency / 1000 * AcceptPause);
    }
}
