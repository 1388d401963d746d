using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>One VMM's connection to a handler. The end of the stream is the end of the VMM. For one thread.</summary>
internal sealed class UffdConnection : IDisposable
{
    private readonly UffdHandoverReceiver _receiver;
    private readonly TimeSpan _limit;
    private readonly SafeDescriptor? _process;
    private long _deadline;

    /// <param name="socket">The connection; owned from here on.</param>
    /// <param name="peer">Who is at its other end.</param>
    /// <param name="process">The same as a process that can be killed; null where that is not wanted.</param>
    /// <param name="limit">How long a hand-over may take.</param>
    /// <param name="isAwaited">Whether one must come now; else one may come.</param>
    public UffdConnection(SafeDescriptor socket, UCred peer, SafeDescriptor? process, TimeSpan limit, bool isAwaited = true)
    {
        _process = process;
        Socket = socket;
        Peer = peer;
        _receiver = new UffdHandoverReceiver(socket);
        _limit = limit;
        if (isAwaited) _deadline = Deadline();
    }

    /// <summary>The connection of a VM that somebody else received, and whose further hand-overs that one receives too.</summary>
    public UffdConnection(SafeDescriptor socket, UCred peer, SafeDescriptor? process)
        : this(socket, peer, process, TimeSpan.Zero, isAwaited: false) => IsAdopted = true;

    public SafeDescriptor Socket { get; }

    public UCred Peer { get; }

    public bool IsEnded { get; set; }

    /// <summary>Whether nothing is to be read from it; all that can happen is its end.</summary>
    public bool IsAdopted { get; }

    public bool IsOverdue => _deadline != 0 && Stopwatch.GetTimestamp() >= _deadline;

    /// <summary>How long the hand-over may still take, rounded up; null where none is awaited.</summary>
    public int? MillisecondsLeft => _deadline == 0 ? null
        : (int)Math.Max(0, Math.Ceiling(Stopwatch.GetElapsedTime(Stopwatch.GetTimestamp(), _deadline).TotalMilliseconds));

    /// <summary>Receives what there is; true with a hand-over that is complete. Whoever takes it owns the userfaultfd.</summary>
    /// <exception cref="GuestMemoryException">The hand-over is wrong, or takes too long.</exception>
    public bool TryReceive([NotNullWhen(true)] out UffdHandover? handover)
    {
        handover = _receiver.Receive(out var ended);
        IsEnded = ended;
        if (handover is not null)
        {
            _deadline = 0;
            return true;
        }

        if (_receiver.IsPartial && _deadline == 0) _deadline = Deadline();
        if (!ended && IsOverdue)
        {
            throw new GuestMemoryException(GuestMemoryError.HandoverTimeout,
                $"The VMM connected but did not hand its memory over within {_limit.TotalSeconds:0.#} s.");
        }

        return false;
    }

    /// <summary>Kills the VMM; says why not where it cannot.</summary>
    public string? Kill() => _process is null ? $"Process {Peer.pid} is not known well enough to be killed."
        : Pidfd.TryKill(_process) is var error and not (0 or Errno.ESRCH) ? $"Process {Peer.pid} could not be killed ({Errno.Name(error)})." : null;

    public void Dispose()
    {
        _process?.Dispose();
        _receiver.Dispose();
        Socket.Dispose();
    }

    private long Deadline() => Stopwatch.GetTimestamp() + (long)(_limit.TotalSeconds * Stopwatch.Frequency);
}
