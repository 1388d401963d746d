using static GuestMemory.Core.Tests.FrontEnd;

namespace GuestMemory.Core.Tests;

/// <summary>A disk at a socket: what image it takes, and what it is as memory while a front end is connected.</summary>
public sealed class VhostUserDiskTests : IDisposable
{
    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void ItIsTheMemoryOfTheVmThatIsConnected()
    {
        using var disk = Start();
        Assert.Equal(GuestMemoryError.VmNotFound, Assert.Throws<GuestMemoryException>(disk.GetRegions).Error);
        using (var memory = Memfd())
        using (var log = Memfd(0x1000))
        using (var socket = Connect())
        {
            VhostUserMessage.Send(socket, VhostUserRequest.SetProtocolFeatures, 0, Bytes((ulong)VhostUserProtocolFeatures.LogShmfd));
            VhostUserMessage.Send(socket, VhostUserRequest.SetMemTable, 0, Table(Region(0)), [memory.Number]);
            Host.Until(() => disk.MemorySize == Size);
            Assert.Equal((VhostUserDiskState.Connected, Environment.ProcessId, 1), (disk.State, disk.ProcessId, disk.ConnectionCount));
            GuestMemoryMmap.FromRegions(disk.GetRegions()).WriteExact(0x1000, "before"u8);
            VhostUserMessage.Send(socket, VhostUserRequest.SetLogBase, 0, Bytes(0x1000UL, 0UL), [log.Number]);
            VhostUserMessage.Send(socket, VhostUserRequest.SetFeatures, 0, Bytes(LogAll | Protocol));
            Host.Until(() => disk.IsLogging);
            disk.Memory.WriteExact(0x3000, "after"u8);
            using var marks = MmapLogReg.FromFile(log, 0, 0x1000);
            Assert.Equal(1, marks.GetAndReset().DirtyCount);
            VhostUserMessage.Send(socket, VhostUserRequest.SetFeatures, 0, Bytes(Protocol));
            Host.Until(() => !disk.IsLogging);
            disk.Memory.WriteExact(0x5000, "later"u8);
            Assert.Equal(0, marks.GetAndReset().DirtyCount);
        }

        Host.Until(() => disk.State == VhostUserDiskState.Listening);
        Assert.Equal((0UL, false, null), (disk.MemorySize, disk.IsLogging, disk.ProcessId));
    }

    [Fact]
    public void StoppingItEndsTheConnectionAndTakesTheSocketAway()
    {
        var disk = Start();
        using var socket = Connect();
        Host.Until(() => disk.State == VhostUserDiskState.Connected);
        disk.Dispose();
        Assert.Equal(0, UnixSocket.TryReceive(socket, new byte[1], [], out _, wait: true));
        Assert.Equal(VhostUserDiskState.Stopped, disk.State);
        Assert.False(File.Exists(disk.SocketPath));
        disk.Dispose();
    }

    [Theory]
    [InlineData(0, GuestMemoryError.ImageUnreadable)]
    [InlineData(511, GuestMemoryError.InvalidImage)]
    [InlineData(1000, GuestMemoryError.InvalidImage)]
    [InlineData(-1, GuestMemoryError.ImageNotFound)]
    public void AnImageThatIsNoDiskIsRefused(int length, GuestMemoryError error)
    {
        if (length >= 0) File.WriteAllBytes(_folder["disk"], new byte[length]);
        Assert.Equal(error, Assert.Throws<GuestMemoryException>(() => Open()).Error);
        Assert.Equal(GuestMemoryError.ImageUnreadable, Assert.Throws<GuestMemoryException>(() => Open(_folder.Path)).Error);
        Assert.False(File.Exists(_folder["sock"]));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(257)]
    public void ADiskHasFrom1To256Virtqueues(int count)
    {
        File.WriteAllBytes(_folder["disk"], new byte[512]);
        Assert.Throws<ArgumentOutOfRangeException>(() => Open(queueCount: count));
    }

    private VhostUserDisk Start()
    {
        File.WriteAllBytes(_folder["disk"], new byte[1 << 20]);
        var disk = Open();
        Assert.Equal((1UL << 20, VhostUserDiskState.Listening), (disk.Size, disk.State));
        return disk;
    }

    private VhostUserDisk Open(string? image = null, int queueCount = 1) =>
        VhostUserDisk.Start(new VhostUserDiskOptions { Name = "web", SocketPath = _folder["sock"], ImagePath = image ?? _folder["disk"], QueueCount = queueCount });

    private SafeDescriptor Connect()
    {
        var socket = UnixSocket.Create(nonBlocking: false);
        Assert.Equal(0, UnixSocket.TryConnect(socket, _folder["sock"]));
        return socket;
    }
}
