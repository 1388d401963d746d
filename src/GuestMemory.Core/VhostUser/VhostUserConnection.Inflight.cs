namespace GuestMemory.Core.VhostUser;

/// <content>What is in flight, which the front end keeps for the next back end.</content>
public sealed partial class VhostUserConnection
{
    private InflightRegion? _inflight;

    /// <summary>Makes a region and sends it to the front end. It is used from now on: front ends send it back before virtqueues run, but need not.</summary>
    private void GetInflight(VhostUserMessage message)
    {
        var request = message.Body<VhostUserInflightPayload>();
        CheckInflight(message, request);
        using var file = InflightRegion.CreateFile(request.QueueCount, request.QueueSize);
        ReplaceInflight(InflightRegion.Map(file, 0, request.QueueCount, request.QueueSize));
        var reply = request with { MmapSize = InflightRegion.BytesFor(request.QueueCount, request.QueueSize), MmapOffset = 0 };
        using var lease = new Interop.DescriptorLease(file);
        VhostUserMessage.Send(_socket, message.Request, VhostUserHeader.Reply, BytesOf(reply), [lease.Number]);
    }

    /// <summary>Takes over the region that a former back end, or this one, made.</summary>
    private void SetInflight(VhostUserMessage message)
    {
        var request = message.Body<VhostUserInflightPayload>();
        CheckInflight(message, request);
        var needed = InflightRegion.BytesFor(request.QueueCount, request.QueueSize);
        if (request.MmapSize < needed)
            throw Invalid($"An inflight region of {request.MmapSize} bytes is too short: {request.QueueCount} virtqueues of {request.QueueSize} descriptors need {needed}.");
        VhostUserMemory.CheckSealed(message.Descriptors[0], _trusted, "inflight region");
        ReplaceInflight(InflightRegion.Map(message.Descriptors[0], request.MmapOffset, request.QueueCount, request.QueueSize));
    }

    private void CheckInflight(VhostUserMessage message, VhostUserInflightPayload request)
    {
        Require(message, VhostUserProtocolFeatures.InflightShmfd);
        if (Running.Count != 0)
            throw new GuestMemoryException(GuestMemoryError.InvalidOperation, "Virtqueues run; the inflight region cannot change now.");
        if (request.QueueCount == 0 || request.QueueCount > _states.Length || request.QueueSize == 0 || request.QueueSize > _device.MaxQueueSize)
        {
            throw Invalid($"An inflight region is for {request.QueueCount} virtqueues of {request.QueueSize} descriptors; "
                + $"1 to {_states.Length} virtqueues of 1 to {_device.MaxQueueSize} are expected.");
        }
    }

    private void ReplaceInflight(InflightRegion region)
    {
        _inflight?.Dispose();
        _inflight = region;
    }

    private void CheckInflight(int index, VhostUserVringState state)
    {
        if (_inflight is { } region && !region.Holds(index, state.Size))
            throw Invalid($"The inflight region has no room for virtqueue {index} of {state.Size} descriptors.");
    }
}
