using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// Takes the packets of file mappings that a request announced out of its tube: all of them, also where something is wrong with one, so
/// that the next packet is a request again. Where they do not come in time, the tube is out of step and of no use any more.
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

    /// <param name="tube">Where they come from; null where there is none.</param>
    /// <param name="count">How many were announced.</param>
    /// <param name="limit">How long all of them together may take.</param>
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

    /// <summary>Whether nothing is waited for any more.</summary>
    public bool IsComplete => _ended || _read >= _count;

    public TimeSpan TimeLeft => _limit - Stopwatch.GetElapsedTime(_start) is { Ticks: > 0 } left ? left : TimeSpan.Zero;

    /// <summary>The mappings, when nothing is waited for any more. The first packet that was wrong decides.</summary>
    /// <exception cref="RequestFailure">Something was wrong.</exception>
    public IReadOnlyList<VmMemoryFileMapping> Received() => _failure is null ? _mappings : throw _failure;

    /// <summary>Takes every packet, and waits for them.</summary>
    public void TakeAll(CancellationToken cancellation)
    {
        while (!IsComplete) TakeNext(cancellation);
    }

    /// <summary>Takes a packet; waits where it has not come yet, and gives up where the time is over.</summary>
    public void TakeNext(CancellationToken cancellation)
    {
        var length = (int)Math.Min(_count - _read, Tube.MaxDescriptors);
        if (TryNext(length, cancellation) is { } message) Take(message, length);
        _read += (uint)length;
    }

    public void Dispose()
    {
        foreach (var message in _messages) message.Dispose();
        _openFiles?.Dispose();
    }

    private TubeMessage? TryNext(int length, CancellationToken cancellation)
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
            // What was too large was taken all the same; anything else leaves the other packets to come, or not.
            Fail(RequestFailure.Chain(exception), exception.Error is not (GuestMemoryError.RecvTooManyFds or GuestMemoryError.PacketTooLarge));
            return null;
        }
    }

    private void Take(TubeMessage message, int length)
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
            // Upstream does not look how many there are.
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
