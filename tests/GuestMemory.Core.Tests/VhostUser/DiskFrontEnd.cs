using static GuestMemory.Core.Tests.FrontEnd;

namespace GuestMemory.Core.Tests;

/// <summary>A front end of a back end that listens: it has the memory, and the guest that uses the disk in it.</summary>
internal sealed class DiskFrontEnd : FrontEndSocket, IDisposable
{
    private readonly VhostUserBackend _backend;
    private readonly SafeDescriptor _file;

    public DiskFrontEnd(VhostUserBackend backend, SafeDescriptor? memory = null)
    {
        _backend = backend;
        _file = memory ?? Memfd();
        using (var file = Interop.Descriptor.Duplicate(_file)) Memory = GuestMemoryMmap.FromRegions([GuestRegionMmap.FromRange(0, Size, file)]);
        Guest = new DiskGuest(Memory, Kick, Call);
        Socket = UnixSocket.Create(nonBlocking: false);
        Assert.Equal(0, UnixSocket.TryConnect(Socket, backend.SocketPath));
    }

    public SafeDescriptor Kick { get; } = EventFd.Create();

    public SafeDescriptor Call { get; } = EventFd.Create();

    public GuestMemoryMmap Memory { get; }

    public DiskGuest Guest { get; }

    /// <summary>Whether the back end has closed the connection.</summary>
    public bool IsEnded => UnixSocket.HasPeerEnded(Socket);

    /// <summary>Negotiates everything.</summary>
    public void Negotiate()
    {
        Send(VhostUserRequest.SetProtocolFeatures, Bytes(Ask(VhostUserRequest.GetProtocolFeatures)));
        SetLogging(false);
    }

    /// <summary>Accepts all features but the event index, with the log or without it.</summary>
    public void SetLogging(bool enabled) =>
        Accepted(VhostUserRequest.SetFeatures, Bytes(Ask(VhostUserRequest.GetFeatures) & ~(enabled ? 0 : LogAll) & ~(1UL << Vhost.VIRTIO_RING_F_EVENT_IDX)));

    /// <summary>Shares the memory, and has the virtqueue run.</summary>
    /// <param name="next">Where it begins.</param>
    public void Start(uint next = 0)
    {
        ShareMemory();
        StartVring(0, 0, Kick, Call, next);
    }

    /// <summary>Has a virtqueue at a guest address run.</summary>
    public void StartVring(uint index, ulong at, SafeDescriptor kick, SafeDescriptor call, uint next = 0)
    {
        Accepted(VhostUserRequest.SetVringNum, State(index, DiskGuest.QueueSize));
        Accepted(VhostUserRequest.SetVringBase, State(index, next));
        Accepted(VhostUserRequest.SetVringAddr, Address(index, User + at));
        Accepted(VhostUserRequest.SetVringKick, Bytes((ulong)index), kick);
        Accepted(VhostUserRequest.SetVringCall, Bytes((ulong)index), call);
        Accepted(VhostUserRequest.SetVringEnable, State(index, 1));
    }

    /// <summary>Shares the memory, with another file at address 0 where one is given.</summary>
    public void ShareMemory(SafeDescriptor? file = null) => Accepted(VhostUserRequest.SetMemTable, Table(Region(0)), file ?? _file);

    /// <summary>Replaces the log.</summary>
    public void SetLog(SafeDescriptor file)
    {
        Send(VhostUserRequest.SetLogBase, Bytes(0x1000UL, 0UL), 0, file);
        Assert.Equal(Bytes(0x1000UL, 0UL), Reply(VhostUserRequest.SetLogBase));
    }

    public void Disconnect() => Socket.Dispose();

    public void Dispose()
    {
        Socket.Dispose();
        foreach (var descriptor in Received) descriptor.Dispose();
        foreach (var region in Memory.Regions) region.Dispose();
        _file.Dispose();
        Kick.Dispose();
        Call.Dispose();
    }

    protected override string? Refusal() => _backend.Error;
}
