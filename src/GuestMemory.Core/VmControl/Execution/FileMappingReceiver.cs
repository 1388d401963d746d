using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// Receives the packets of file mappings that a request has announced: all of them, also where one is invalid, so that the next packet
/// in the tube is a request again. Where they do not arrive in time, the tube is out of step and must be closed.
/// </summary>
internal sealed class FileMappingReceiver : IDisposable
{
    private readonly Tube? _tube;
    private readonly ulong _count;
    private readonly TimeSpan _limit;
    private readonly long _start = Stopwatch.GetTimestamp();
    private readonly OpenFilesLimit? _openFiles;
    private readonly List<TubeMessage> _messages = [];
    private readonly List<VmMemoryFileMapping> _mappings = [];
    private RequestFailure? _failure;
    private bool _ended;
    private ulong _read;

    /// <param name="tube">The tube to receive them from; null where there is none.</param>
    /// <param name="count">The announced number of file mappings.</param>
    /// <param name="limit">The time limit for all of them together.</param>
    public FileMappingReceiver(Tube? tube, ulong count, TimeSpan limit)
    {
        _tube = tube;
        _count = count;
        _limit = limit;
        try
        {
            _openFiles = OpenFilesLimit.Raise();
        }
        catch (SyscallException exception)
        {
            _failure = new RequestFailure([.. RequestFailure.Chain(exception), "failed to set max count of file descriptors"]);
        }

        if (count > VmMemoryContext.MaxFileMappings) Fail([$"{count} file mappings are more than {VmMemoryContext.MaxFileMappings}"], ended: true);
        else if (count > 0 && tube is null) Fail([$"{count} file mappings were announced, but there is no tube for them to come through"], ended: true);
    }

    /// <summary>Whether every packet was received, or no more will be.</summary>
    public bool IsComplete => _ended || _read >= _count;

    public TimeSpan TimeLeft => _limit - Stopwatch.GetElapsedTime(_start) is { Ticks: > 0 } left ? left : TimeSpan.Zero;

    /// <summary>The mappings, once <see cref="IsComplete"/>. The first invalid packet is the failure.</summary>
    /// <exception cref="RequestFailure">A packet was invalid or missing.</exception>
    public IReadOnlyList<VmMemoryFileMapping> Received() => _failure is null ? _mappings : throw _failure;

    /// <summary>Receives every packet, and waits for them.</summary>
    public void ReceiveAll(CancellationToken cancellation)
    {
        while (!IsComplete) ReceiveNext(cancellation);
    }

    /// <summary>Receives one packet; waits for it until the time limit.</summary>
    public void ReceiveNext(CancellationToken cancellation)
    {
        var length = (int)Math.Min(_count - _read, Tube.MaxDescriptors);
        if (TryReceive(length, cancellation) is { } message) Parse(message, length);
        _read += (uint)length;
    }

    public void Dispose()
    {
        foreach (var message in _messages) message.Dispose();
        _openFiles?.Dispose();
    }

    private TubeMessage? TryReceive(int length, CancellationToken cancellation)
    {
        var left = TimeLeft;
        if (left == TimeSpan.Zero)
        {
            Fail(RequestFailure.Chain(RequestFailure.Errno(Errno.EAGAIN)), ended: true);
            return null;
        }

        try
        {
            return _tube!.Receive(length, cancellation, left);
        }
        catch (GuestMemoryException exception)
        {
            // A packet that was too large has left the tube; after any other error the position in the tube is unknown.
            Fail(RequestFailure.Chain(exception), exception.Error is not (GuestMemoryError.RecvTooManyFds or GuestMemoryError.PacketTooLarge));
            return null;
        }
    }

    private void Parse(TubeMessage message, int length)
    {
        if (_failure is not null)
        {
            message.Dispose();
            return;
        }

        // Its descriptors are needed until the mappings are made.
        _messages.Add(message);
        try
        {
            var mappings = message.Read(VmControlJson.Default.VmMemoryFileMappingArray);
            // Upstream does not check their number.
            if (mappings.Length != length || !Array.TrueForAll(mappings, static mapping => mapping is not null))
                Fail([$"a packet has {mappings.Length} file mappings, where {length} were announced"], ended: false);
            else
                _mappings.AddRange(mappings);
        }
        catch (GuestMemoryException exception)
        {
            Fail([exception.Message], ended: false);
        }
    }

    private void Fail(IReadOnlyList<string> messages, bool ended)
    {
        _failure ??= new RequestFailure([.. messages, $"get {_count} FDs to be mapped"]);
        _ended |= ended;
        if (ended) _tube?.IsOutOfStep = true;
    }
}
