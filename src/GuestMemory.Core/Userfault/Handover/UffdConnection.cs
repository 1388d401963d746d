using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// One VMM's connection to a handler. A VM ends with the VMM's process, which a pidfd tells. The end of the stream is the end only
/// before a hand-over: Firecracker before its PR #5122 closes its socket right after it. Where the stream of a VMM that lives on ends,
/// the kernel is asked whether the memory is still registered; a VMM of this library gives it back first. For one thread.
/// </summary>
internal sealed class UffdConnection : IWatched, IDisposable
{
    private readonly UffdHandoverReceiver _receiver;
    private readonly TimeSpan _limit;
    private readonly List<UffdHandover> _memories = [];
    private Epoll? _epoll;
    private Action<UffdConnection>? _ready;
    private StreamState _stream;
    private long _deadline;

    /// <param name="socket">The connection; owned from here on.</param>
    /// <param name="process">The process at its other end, as a pidfd; owned from here on.</param>
    /// <param name="peer">Who that is.</param>
    /// <param name="limit">How long a hand-over may take.</param>
    /// <param name="known">A VM that came over it before; its userfaultfd stays the caller's. Null where a hand-over must come now.</param>
    public UffdConnection(SafeDescriptor socket, SafeDescriptor process, UCred peer, TimeSpan limit, UffdHandover? known = null)
    {
        Socket = socket;
        Process = process;
        Peer = peer;
        _receiver = new UffdHandoverReceiver(socket);
        _limit = limit;
        if (known is null) _deadline = Deadline();
        else _memories.Add(known);
    }

    /// <summary>The connection of a VM that another process received, which receives the further hand-overs too.</summary>
    public static UffdConnection Adopt(SafeDescriptor socket, SafeDescriptor process, UCred peer, UffdHandover known) =>
        new(socket, process, peer, TimeSpan.Zero, known) { _stream = StreamState.Watched, IsAdopted = true };

    private enum StreamState
    {
        /// <summary>Hand-overs are received.</summary>
        Read,
        /// <summary>Nothing is read; its end is noticed.</summary>
        Watched,
        /// <summary>It has ended.</summary>
        Ended,
    }

    public SafeDescriptor Socket { get; }

    /// <summary>Becomes readable when the process has ended.</summary>
    public SafeDescriptor Process { get; }

    public UCred Peer { get; }

    public bool IsEnded { get; set; }

    /// <summary>Whether another process has it too, and receives from it.</summary>
    public bool IsAdopted { get; private init; }

    public bool IsOverdue => _deadline != 0 && Stopwatch.GetTimestamp() >= _deadline;

    /// <summary>How long the hand-over may still take, rounded up; null where none is awaited.</summary>
    public int? MillisecondsLeft => _deadline == 0 ? null
        : (int)Math.Max(0, Math.Ceiling(Stopwatch.GetElapsedTime(Stopwatch.GetTimestamp(), _deadline).TotalMilliseconds));

    /// <summary>Has a loop tell when there is something to receive, or the process has ended.</summary>
    public void Watch(Epoll epoll, Action<UffdConnection> ready)
    {
        (_epoll, _ready) = (epoll, ready);
        epoll.Add(Process, this);
        if (_stream == StreamState.Read) epoll.Add(Socket, this);
        else if (_stream == StreamState.Watched) epoll.AddEnd(Socket, this);
    }

    public void Ready() => _ready!(this);

    public void Unwatch()
    {
        _epoll?.Remove(Process);
        if (_stream != StreamState.Ended) _epoll?.Remove(Socket);
        _epoll = null;
    }

    /// <summary>Receives what there is; true with a hand-over that is complete. The caller owns its descriptors, and closes them where it refuses the hand-over.</summary>
    /// <exception cref="GuestMemoryException">The hand-over is wrong, or takes too long: <see cref="Refuse"/> comes next.</exception>
    public bool TryReceive([NotNullWhen(true)] out UffdHandover? handover)
    {
        handover = null;
        IsEnded |= Pidfd.HasEnded(Process);
        if (IsEnded || _stream == StreamState.Ended) return false;
        if (_stream == StreamState.Watched)
        {
            if (UnixSocket.HasPeerEnded(Socket)) EndStream();
            return false;
        }

        handover = _receiver.Receive(out var ended);
        if (handover is not null)
        {
            _deadline = 0;
            Keep(handover);
            return true;
        }

        if (ended)
        {
            EndStream();
            return false;
        }

        if (_receiver.IsPartial && _deadline == 0) _deadline = Deadline();
        if (IsOverdue)
        {
            throw new GuestMemoryException(GuestMemoryError.HandoverTimeout,
                $"The VMM connected but did not hand its memory over within {_limit.TotalSeconds:0.#} s.");
        }

        return false;
    }

    /// <summary>Receives no more after an error. VMs that came before go on; without any the connection ends.</summary>
    public void Refuse()
    {
        _deadline = 0;
        _receiver.Dispose();
        IsEnded |= !_memories.Exists(static memory => !memory.Userfaultfd.IsClosed);
        if (IsEnded || _stream != StreamState.Read) return;
        _stream = StreamState.Watched;
        _epoll?.Remove(Socket);
        _epoll?.AddEnd(Socket, this);
    }

    /// <summary>Kills the VMM; says why not where it cannot. For any thread.</summary>
    public string? Kill() => Pidfd.TryKill(Process) is var error and not (0 or Errno.ESRCH)
        ? $"Process {Peer.pid} of user {Peer.uid} could not be killed ({Errno.Name(error)}): the handler must run as that user, or as root." : null;

    public void Dispose()
    {
        _receiver.Dispose();
        Socket.Dispose();
        Process.Dispose();
    }

    /// <summary>Takes note of a hand-over. Its memory being alive now proves that the pidfd, opened before, is of the process that connected.</summary>
    private void Keep(UffdHandover handover)
    {
        if (TryProbe(handover, handover.Mappings.Count > 0 ? handover.Mappings[0].BaseHostVirtAddr : 0) == Errno.ESRCH)
        {
            handover.Close();
            throw new GuestMemoryException(GuestMemoryError.PeerClosed, "The VMM ended during the hand-over.");
        }

        _memories.Add(handover);
    }

    private void EndStream()
    {
        _deadline = 0;
        _epoll?.Remove(Socket);
        _stream = StreamState.Ended;
        IsEnded |= !_memories.Exists(HasMemory);
    }

    /// <summary>Whether the first or the last page of a region is registered.</summary>
    private static bool HasMemory(UffdHandover vm) => vm.Mappings.Any(mapping =>
        TryProbe(vm, mapping.BaseHostVirtAddr) is not (Errno.ENOENT or Errno.ESRCH) || TryProbe(vm, mapping.BaseHostVirtAddr + mapping.Size - mapping.PageSize) is not (Errno.ENOENT or Errno.ESRCH));

    private static int TryProbe(UffdHandover vm, ulong address)
    {
        if (vm.Userfaultfd.IsClosed) return Errno.ESRCH;
        using var lease = new DescriptorLease(vm.Userfaultfd);
        var page = address & ~(HostPage.Size - 1);
        var error = Userfaultfd.TryProbeRange(lease.Number, page, HostPage.Size);
        // A part of a huge page is refused like an address that no process can have; only the latter cannot be woken.
        return error == Errno.EINVAL && Userfaultfd.TryWake(lease.Number, page, HostPage.Size) == Errno.EINVAL ? Errno.ENOENT : error;
    }

    private long Deadline() => Stopwatch.GetTimestamp() + (long)(_limit.TotalSeconds * Stopwatch.Frequency);
}
