using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>
/// A front end and a back end over a pair of sockets. The connection runs on a thread of its own; a test looks at it after a reply,
/// or after the thread has ended.
/// </summary>
internal sealed class FrontEnd : FrontEndSocket, IDisposable
{
    public const ulong LogAll = 1UL << 26;
    public const ulong Protocol = 1UL << 30;
    public const ulong User = 0x7f0000000000;
    public const ulong Size = 0x100000;

    private readonly Thread _thread;
    private Exception? _failure;

    public FrontEnd(RecordingDevice? device = null, bool trusted = false)
    {
        Device = device ?? new RecordingDevice();
        (Socket, var far) = UnixSocket.CreatePair(nonBlocking: false, UnixSocket.SOCK_STREAM);
        Connection = new VhostUserConnection(far, Device, trusted);
        _thread = new Thread(() => _failure = Record.Exception(Connection.Run)) { IsBackground = true };
        _thread.Start();
    }

    public RecordingDevice Device { get; }

    public VhostUserConnection Connection { get; }

    /// <summary>A connection that has negotiated everything, with replies to what asks for them.</summary>
    public static FrontEnd Negotiated(RecordingDevice? device = null, bool trusted = false)
    {
        var front = new FrontEnd(device, trusted);
        var features = front.Ask(VhostUserRequest.GetFeatures);
        var protocol = front.Ask(VhostUserRequest.GetProtocolFeatures);
        front.Send(VhostUserRequest.SetProtocolFeatures, Bytes(protocol));
        Assert.Equal(0UL, front.Acknowledged(VhostUserRequest.SetOwner));
        Assert.Equal(0UL, front.Acknowledged(VhostUserRequest.SetFeatures, Bytes(features & ~LogAll)));
        return front;
    }

    public static SafeDescriptor Memfd(ulong size = Size) => Interop.Memfd.CreateSealed("vhost-test", (long)size, 0);

    /// <summary>A file, which is not sealed.</summary>
    public static SafeDescriptor Open(string path)
    {
        using var file = File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite);
        using var duplicate = Descriptor.Duplicate(file);
        var number = (int)duplicate.DangerousGetHandle();
        duplicate.SetHandleAsInvalid();
        return new SafeDescriptor(number);
    }

    public static byte[] Bytes<T>(params T[] values)
        where T : unmanaged => MemoryMarshal.AsBytes(values.AsSpan()).ToArray();

    public static VhostMemoryRegion Region(ulong guest, ulong size = Size, ulong? user = null, ulong offset = 0) =>
        new() { guest_phys_addr = guest, memory_size = size, userspace_addr = user ?? User + guest, flags_padding = offset };

    public static byte[] Table(params VhostMemoryRegion[] regions) => [.. Bytes((ulong)regions.Length), .. Bytes(regions)];

    public static byte[] Single(VhostMemoryRegion region) => [.. Bytes(0UL), .. Bytes(region)];

    public static byte[] State(uint index, uint number) => Bytes(index, number);

    public static byte[] Address(uint index, ulong user, uint flags = 0, ulong log = 0) =>
        Bytes(new VhostVringAddr { index = index, flags = flags, desc_user_addr = user, avail_user_addr = user + 0x1000, used_user_addr = user + 0x2000, log_guest_addr = log });

    public void Refused(GuestMemoryError error, VhostUserRequest request, byte[]? payload = null, params SafeDescriptor[] descriptors)
    {
        Assert.NotEqual(0UL, Acknowledged(request, payload, descriptors));
        Assert.Equal(error, Connection.LastRefusal!.Error);
    }

    /// <summary>Shares memory from guest address 0 on; returns its file.</summary>
    public SafeDescriptor ShareMemory()
    {
        var file = Memfd();
        Accepted(VhostUserRequest.SetMemTable, Table(Region(0)), file);
        return file;
    }

    /// <summary>Sets up a virtqueue at a guest address, and enables it.</summary>
    public void Start(uint index, ulong guest, uint flags = 0, ulong log = 0)
    {
        Accepted(VhostUserRequest.SetVringNum, State(index, 16));
        Accepted(VhostUserRequest.SetVringBase, State(index, 5));
        Accepted(VhostUserRequest.SetVringAddr, Address(index, User + guest, flags, log));
        using var kick = EventFd.Create();
        using var call = EventFd.Create();
        Accepted(VhostUserRequest.SetVringKick, Bytes((ulong)index), kick);
        Accepted(VhostUserRequest.SetVringCall, Bytes((ulong)index), call);
        Accepted(VhostUserRequest.SetVringEnable, State(index, 1));
    }

    /// <summary>Replaces the log, as QEMU does: with a reply that is not asked for.</summary>
    public void SetLog(SafeDescriptor file, ulong size, ulong offset = 0)
    {
        Send(VhostUserRequest.SetLogBase, Bytes(size, offset), 0, file);
        Assert.Equal(Bytes(size, offset), Reply(VhostUserRequest.SetLogBase));
    }

    public void SetLogging(bool enabled) =>
        Accepted(VhostUserRequest.SetFeatures, Bytes(enabled ? Connection.Features | LogAll : Connection.Features & ~LogAll));

    /// <summary>Waits until the connection has ended by itself; its error.</summary>
    public GuestMemoryException Failure()
    {
        Assert.True(_thread.Join(Host.Patience), "the connection goes on");
        return Assert.IsAssignableFrom<GuestMemoryException>(_failure);
    }

    /// <summary>Waits until every request that was sent is executed, or the connection has ended; takes the replies.</summary>
    public void Drain()
    {
        byte[] last = [.. Bytes(1U, VhostUserHeader.Version | VhostUserHeader.Reply, 8U), .. Bytes(Device.Features | LogAll | Protocol)];
        if (UnixSocket.TrySend(Socket, Bytes(1U, VhostUserHeader.Version, 0U), []) < 0) return;
        var replies = new List<byte>();
        var bytes = new byte[4096];
        while (!CollectionsMarshal.AsSpan(replies).EndsWith(last))
        {
            var received = UnixSocket.TryReceive(Socket, bytes, [], out _, wait: true);
            if (received <= 0) return;
            replies.AddRange(bytes.AsSpan(0, (int)received));
        }
    }

    public void Dispose()
    {
        Connection.Stop();
        Assert.True(_thread.Join(Host.Patience), "the connection goes on");
        Assert.True(_failure is null or GuestMemoryException, _failure?.ToString());
        Connection.Dispose();
        Socket.Dispose();
    }

    protected override string? Refusal() => Connection.LastRefusal?.Message ?? Failure().Message;
}
