namespace GuestMemory.Core;

/// <summary>
/// Takes the packets of file mappings that a request announced out of its tube: all of them, also where the request has failed
/// already, so that the next packet is a request again. Where they do not come, the tube is out of step and of no use any more.
/// </summary>
internal sealed class FileMappingReceiver(VmMemoryExecution on, ulong count) : IDisposable
{
    private readonly List<TubeMessage> _messages = [];
    private RequestFailure? _failure;
    private bool _ended;
    private ulong _read;

    public List<VmMemoryFileMapping> Mappings { get; } = [];

    private string Busy => $"get {count} FDs to be mapped";

    /// <summary>Does something; where that fails, the packets are taken and dropped.</summary>
    public T OrDrain<T>(Func<T> action)
    {
        try
        {
            return action();
        }
        catch (RequestFailure)
        {
            TakeAll(keep: false);
            throw;
        }
    }

    /// <summary>Receives every packet. The first that is wrong decides, the others are taken all the same.</summary>
    public void Receive()
    {
        TakeAll(keep: true);
        if (_failure is not null) throw _failure;
    }

    public void Dispose()
    {
        foreach (var message in _messages) message.Dispose();
    }

    private void TakeAll(bool keep)
    {
        if (count > VmMemoryContext.MaxFileMappings) Fail([$"{count} file mappings are more than {VmMemoryContext.MaxFileMappings}"], ended: true);
        else if (count > 0 && on.Tube is null) Fail([$"{count} file mappings were announced, but there is no tube for them to come through"], ended: true);
        while (_read < count && !_ended)
        {
            var length = (int)Math.Min(count - _read, Tube.MaxDescriptors);
            if (TryNext(length) is { } message) Take(message, length, keep && _failure is null);
            _read += (uint)length;
        }
    }

    private TubeMessage? TryNext(int length)
    {
        try
        {
            return on.Tube!.Receive(length, on.Cancellation, on.FileMappingTimeout);
        }
        catch (GuestMemoryException exception)
        {
            // What was too large was taken all the same; anything else leaves the other packets to come, or not.
            Fail(RequestFailure.Chain(exception), exception.Error is not (GuestMemoryError.RecvTooManyFds or GuestMemoryError.PacketTooLarge));
            return null;
        }
    }

    private void Take(TubeMessage message, int length, bool keep)
    {
        // Its descriptors are needed until the mappings are made.
        _messages.Add(message);
        if (!keep) return;
        try
        {
            var mappings = message.Read(VmControlJson.Default.VmMemoryFileMappingArray);
            // Upstream does not look how many there are.
            if (mappings.Length != length || !Array.TrueForAll(mappings, static mapping => mapping is not null))
                Fail([$"a packet has {mappings.Length} file mappings, where {length} were announced"], ended: false);
            else
                Mappings.AddRange(mappings);
        }
        catch (GuestMemoryException exception)
        {
            Fail([exception.Message], ended: false);
        }
    }

    private void Fail(IReadOnlyList<string> messages, bool ended)
    {
        _failure ??= new RequestFailure([.. messages, Busy]);
        _ended |= ended;
        if (ended) on.Tube?.IsOutOfStep = true;
    }
}
