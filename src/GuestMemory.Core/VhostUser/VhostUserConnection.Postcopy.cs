using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <content>A VM that arrives by a post-copy migration: it runs here while pages of its memory are still at the source.</content>
public sealed partial class VhostUserConnection
{
    private bool? _offersPostcopy;
    private volatile VhostUserPostcopy? _postcopy;

    // The memory was taken away from the device, whose errors follow from that.
    private volatile bool _isReleased;

    /// <summary>Whether the VM arrives by a post-copy migration. An access to its memory may then wait until the front end provides the page.</summary>
    public bool IsPostcopy => _postcopy is { IsListening: true };

    private bool OffersPostcopy => _offersPostcopy ??= (_trusted || UnixSocket.PeerCredentials(_socket).uid is var user && (user == 0 || user == Users.Current)) && VhostUserPostcopy.IsSupported;

    private byte[]? ExecutePostcopy(VhostUserMessage message)
    {
        switch (message.Request)
        {
            case VhostUserRequest.PostcopyAdvise:
                Require(message, VhostUserProtocolFeatures.Pagefault);
                AdvisePostcopy(message);
                return null;
            case VhostUserRequest.PostcopyListen:
                ListenPostcopy();
                return null;
            default:
                EndPostcopy();
                return BytesOf(0UL);
        }
    }

    /// <summary>Makes the userfaultfd and sends it to the front end.</summary>
    private void AdvisePostcopy(VhostUserMessage message)
    {
        if (_postcopy is not null) throw WrongOrder("Post-copy was announced before, and has not ended.");
        _postcopy = new VhostUserPostcopy();
        using var lease = new DescriptorLease(_postcopy.Userfaultfd);
        VhostUserMessage.Send(_socket, message.Request, VhostUserHeader.Reply, [], [lease.Number]);
    }

    /// <summary>Memory that is shared from now on has pages that only the front end can provide.</summary>
    private void ListenPostcopy()
    {
        if (_postcopy is not { } postcopy) throw WrongOrder("Post-copy begins, and was not announced: the front end has no userfaultfd to provide pages by.");
        if (postcopy.IsListening) throw WrongOrder("Post-copy has begun already.");
        // The front end learns where regions are in this process when it shares them.
        if (_memory.Guest.Regions.Count != 0) throw WrongOrder("Post-copy begins, and the memory was shared before: the front end does not know where its pages are missed.");
        postcopy.IsListening = true;
    }

    /// <summary>Every page has come. The virtqueues go on as ever.</summary>
    private void EndPostcopy()
    {
        if (_postcopy is not { IsListening: true } postcopy) throw WrongOrder("Post-copy ends, and has not begun.");
        postcopy.End(_memory.Guest.Regions);
        _postcopy = null;
        foreach (var vring in Running)
        {
            StopVring(vring.Index);
            StartVring(vring.Index);
        }
    }

    /// <summary>
    /// Takes the message by which a front end says that it knows where this process has the memory it shared, and provides its pages; it has no reply.
    /// Before it nothing may touch that memory, and no other request but a further change of the memory is expected.
    /// </summary>
    /// <exception cref="GuestMemoryException">InvalidOperation: it did not come, or says that the front end cannot.</exception>
    private bool TryTakeServedAck(VhostUserMessage message)
    {
        if (_postcopy is not { IsListening: true } postcopy) return false;
        if (!VhostUserLayout.IsServedAck(message))
        {
            if (postcopy.AwaitsAck && message.Request is not (VhostUserRequest.AddMemReg or VhostUserRequest.RemMemReg))
                throw WrongOrder($"The front end has shared memory and not said that it provides the pages; the request {message.Request} came in place of that.");
            return false;
        }

        // QEMU also sends it where it had nothing to change.
        if (!postcopy.AwaitsAck && message.Request != VhostUserRequest.None) return false;
        if (message.Body<ulong>() is var status and not 0) throw WrongOrder($"The front end does not provide the pages of the memory that it has shared: it says {status}.");
        foreach (var index in postcopy.TakeHeld()) StartVring(index);
        return true;
    }

    /// <summary>Whether a request is answered by where this process has the memory.</summary>
    private bool HasAddressReply(VhostUserMessage message) => IsPostcopy && message.Request is VhostUserRequest.SetMemTable or VhostUserRequest.AddMemReg;

    /// <summary>Where the front end has ended nobody provides pages any more: accesses that wait for one end with an error.</summary>
    private void ReleaseIfEnded()
    {
        if (IsPostcopy && UnixSocket.HasPeerEnded(_socket)) ReleaseIfPostcopy();
    }

    private void ReleaseIfPostcopy()
    {
        if (!IsPostcopy) return;
        _isReleased = true;
        foreach (var region in _memory.Guest.Regions) region.Dispose();
    }

    private static GuestMemoryException WrongOrder(string message) => new(GuestMemoryError.InvalidOperation, message);
}
