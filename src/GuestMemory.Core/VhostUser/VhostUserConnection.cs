using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <summary>
/// A connection of a vhost-user front end (QEMU, for example) to a device: it executes the requests of the front end, and owns the
/// memory, the log and the descriptors that the front end shares. One thread executes requests; <see cref="Stop"/>, and reading
/// <see cref="Memory"/>, are for any thread.
/// </summary>
/// <remarks>
/// A request that cannot be executed changes nothing. The front end gets an error as its reply where it asked for one (REPLY_ACK);
/// otherwise, and where a message is malformed, the connection ends. Files of a front end that is not trusted must be memfds that are
/// sealed against shrinking, as QEMU's memory-backend-memfd is. Post-copy is offered to front ends that are root's, this process's user's, or trusted:
/// it takes a userfaultfd of this process, whose holder can have accesses to any private memory of this process wait, and fill it.
/// </remarks>
public sealed partial class VhostUserConnection : IDisposable
{
    private const ulong LogAll = 1UL << Vhost.VHOST_F_LOG_ALL;
    private const ulong ProtocolFeaturesBit = 1UL << 30;

    private readonly SafeDescriptor _socket;
    private readonly IVhostUserDevice _device;
    private readonly bool _trusted;
    private VhostUserProtocolFeatures _protocolFeatures;

    // Why a device ended the connection, from any thread.
    private Exception? _failure;

    /// <param name="socket">The connected socket (SOCK_STREAM, blocking); this object owns it.</param>
    /// <param name="device">The device, which stays the caller's.</param>
    /// <param name="trusted">Accepts files that the front end can shorten, which would end this process, and offers post-copy to every user.</param>
    public VhostUserConnection(SafeDescriptor socket, IVhostUserDevice device, bool trusted = false)
    {
        ArgumentNullException.ThrowIfNull(socket);
        ArgumentNullException.ThrowIfNull(device);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(device.QueueCount, nameof(device));
        ArgumentOutOfRangeException.ThrowIfGreaterThan(device.QueueCount, MaxQueues, nameof(device));
        _socket = socket;
        _device = device;
        _trusted = trusted;
        _states = new VhostUserVringState[device.QueueCount];
        _running = new VhostUserVring?[device.QueueCount];
    }

    /// <summary>The virtio features that the front end has accepted, as bits.</summary>
    public ulong Features { get; private set; }

    /// <summary>The error of the request that was refused last; null where none was.</summary>
    public GuestMemoryException? LastRefusal { get; private set; }

    private ulong OfferedFeatures => _device.Features | LogAll | ProtocolFeaturesBit;

    private VhostUserProtocolFeatures OfferedProtocolFeatures => VhostUserProtocolFeatures.Mq | VhostUserProtocolFeatures.LogShmfd | VhostUserProtocolFeatures.ReplyAck
        | VhostUserProtocolFeatures.Config | VhostUserProtocolFeatures.InflightShmfd | VhostUserProtocolFeatures.ConfigureMemSlots
        | (OffersPostcopy ? VhostUserProtocolFeatures.Pagefault : VhostUserProtocolFeatures.None);

    /// <summary>Executes requests until the front end closes the connection, or <see cref="Stop"/>. The virtqueues are stopped then.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="ProcessRequest"/>; or what the device has failed with (<see cref="VhostUserVring.Fail"/>), InvalidQueue for example.</exception>
    public void Run()
    {
        try
        {
            while (ProcessRequest())
            {
            }
        }
        catch (GuestMemoryException) when (Volatile.Read(ref _failure) is not null)
        {
            // The connection ended under a request: the cause is the device's.
        }
        finally
        {
            ReleaseIfPostcopy();
            StopVrings();
            // The front end learns at once that no request is executed any more.
            Stop();
        }

        if (_failure is { } failure) ExceptionDispatchInfo.Throw(failure);
    }

    /// <summary>Waits for a request and executes it; false where the front end has closed the connection.</summary>
    /// <exception cref="GuestMemoryException">
    /// InvalidMessage, PacketTooLarge, PartialMessage, IncorrectFds: the message is malformed. Disconnected. InactiveOperation,
    /// FeatureMismatch, InvalidOperation, InvalidParam, and what mapping memory throws: the request was refused, and the front end
    /// has asked for no reply. The connection is of no use afterwards.
    /// </exception>
    public bool ProcessRequest()
    {
        using var message = VhostUserMessage.Receive(_socket);
        if (message is null) return false;
        byte[]? reply;
        try
        {
            if (TryTakeServedAck(message)) return true;
            VhostUserLayout.Check(message);
            reply = Execute(message);
        }
        catch (GuestMemoryException exception)
        {
            LastRefusal = exception;
            if (!TryRefuse(message)) throw;
            if (exception.Error is GuestMemoryError.InvalidMessage or GuestMemoryError.IncorrectFds) throw;
            return true;
        }

        if (reply is not null) Reply(message, reply);
        else if (IsAcknowledged(message)) Reply(message, BytesOf(0UL));
        return true;
    }

    /// <summary>Ends the connection: <see cref="Run"/> returns when the request that is being executed is over.</summary>
    public void Stop() => UnixSocket.Shutdown(_socket);

    /// <summary>Stops the virtqueues, unmaps the memory and closes every descriptor. <see cref="Run"/> must have returned.</summary>
    public void Dispose()
    {
        ReleaseIfPostcopy();
        StopVrings();
        foreach (var state in _states)
        {
            state.Kick?.Dispose();
            state.Call?.Dispose();
            state.Error?.Dispose();
        }

        foreach (var region in _memory.Guest.Regions) Unmap(region);
        _postcopy?.Dispose();
        _inflight?.Dispose();
        _log.Dispose();
        _socket.Dispose();
    }

    /// <summary>A device cannot go on: the reason ends the connection.</summary>
    private void Fail(Exception why)
    {
        // What follows from the end of the connection is not its reason.
        if (!_isReleased) Interlocked.CompareExchange(ref _failure, why, null);
        Stop();
    }

    /// <summary>Executes a request; returns the payload of its own kind of reply, or null.</summary>
    private byte[]? Execute(VhostUserMessage message)
    {
        switch (message.Request)
        {
            case VhostUserRequest.GetFeatures:
                return BytesOf(OfferedFeatures);
            case VhostUserRequest.SetFeatures:
                SetFeatures(message.Body<ulong>());
                return null;
            case VhostUserRequest.GetProtocolFeatures:
                return BytesOf((ulong)OfferedProtocolFeatures);
            case VhostUserRequest.SetProtocolFeatures:
                SetProtocolFeatures((VhostUserProtocolFeatures)message.Body<ulong>());
                return null;
            case VhostUserRequest.SetOwner:
                return null;
            case VhostUserRequest.ResetOwner:
                DisableVrings();
                return null;
            case VhostUserRequest.GetQueueNum:
                Require(message, VhostUserProtocolFeatures.Mq);
                return BytesOf((ulong)_states.Length);
            case VhostUserRequest.GetConfig:
                Require(message, VhostUserProtocolFeatures.Config);
                return GetConfig(message.Body<VhostUserConfigPayload>());
            case VhostUserRequest.GetInflightFd:
                GetInflight(message);
                return null;
            case VhostUserRequest.SetInflightFd:
                SetInflight(message);
                return null;
            case VhostUserRequest.SetMemTable or VhostUserRequest.GetMaxMemSlots or VhostUserRequest.AddMemReg or VhostUserRequest.RemMemReg
                or VhostUserRequest.SetLogBase or VhostUserRequest.SetLogFd:
                return ExecuteMemory(message);
            case VhostUserRequest.PostcopyAdvise or VhostUserRequest.PostcopyListen or VhostUserRequest.PostcopyEnd:
                return ExecutePostcopy(message);
            default:
                return ExecuteVring(message);
        }
    }

    private void SetFeatures(ulong features)
    {
        if ((features & ~OfferedFeatures) is var unknown and not 0)
            throw new GuestMemoryException(GuestMemoryError.FeatureMismatch, $"The front end has accepted the features 0x{unknown:x}, which were not offered.");
        if (((features ^ Features) & ~LogAll) != 0 && Running.Count != 0)
            throw new GuestMemoryException(GuestMemoryError.InvalidOperation, "Virtqueues run; no feature but the log's can change now.");
        // Without the feature no request enables them.
        if ((features & ProtocolFeaturesBit) == 0) CheckEnabled();
        _log.Enable((features & LogAll) != 0, _memory.Guest.Regions, Running);
        Features = features;
        if ((features & ProtocolFeaturesBit) == 0) EnableVrings();
    }

    private void SetProtocolFeatures(VhostUserProtocolFeatures features)
    {
        if ((features & ~OfferedProtocolFeatures) is var unknown and not 0)
            throw new GuestMemoryException(GuestMemoryError.FeatureMismatch, $"The front end has accepted the protocol features {unknown}, which were not offered.");
        _protocolFeatures = features;
    }

    /// <summary>A part of the configuration space; without content where the device has no such part, which is the protocol's error.</summary>
    private byte[] GetConfig(VhostUserConfigPayload request)
    {
        var reply = new byte[VhostUserConfigPayload.Length + request.Size];
        MemoryMarshal.Write(reply, request);
        return _device.TryReadConfig(request.Offset, reply.AsSpan(VhostUserConfigPayload.Length)) ? reply : [];
    }

    private bool IsAcknowledged(VhostUserMessage message) => (message.Header.Flags & VhostUserHeader.NeedReply) != 0
        && (_protocolFeatures & VhostUserProtocolFeatures.ReplyAck) != 0 && !VhostUserLayout.HasOwnReply(message) && !HasAddressReply(message);

    /// <summary>Tells the front end that a request was refused; false where no reply says so.</summary>
    private bool TryRefuse(VhostUserMessage message)
    {
        // Without a descriptor it is a refusal.
        if (message.Request == VhostUserRequest.PostcopyAdvise) Reply(message, []);
        else if (message.Request == VhostUserRequest.PostcopyEnd || IsAcknowledged(message)) Reply(message, BytesOf(1UL));
        else return false;
        return true;
    }

    private void Require(VhostUserMessage message, VhostUserProtocolFeatures feature)
    {
        if ((_protocolFeatures & feature) == 0)
            throw new GuestMemoryException(GuestMemoryError.InactiveOperation, $"The request {message.Request} needs the protocol feature {feature}, which was not negotiated.");
    }

    private void Reply(VhostUserMessage message, ReadOnlySpan<byte> payload) => VhostUserMessage.Send(_socket, message.Request, VhostUserHeader.Reply, payload);

    private static byte[] BytesOf<T>(T value)
        where T : unmanaged => ByteValued.AsSlice(ref value).ToArray();
}
