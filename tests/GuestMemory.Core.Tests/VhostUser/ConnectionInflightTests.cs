using static GuestMemory.Core.Tests.FrontEnd;

namespace GuestMemory.Core.Tests;

/// <summary>The inflight region that a front end hands to a back end.</summary>
public sealed class ConnectionInflightTests
{
    [Theory]
    [InlineData(0, 16, 0x1000, 0, GuestMemoryError.InvalidParam)]
    [InlineData(2, 16, 0x1000, 0, GuestMemoryError.InvalidParam)]
    [InlineData(1, 0, 0x1000, 0, GuestMemoryError.InvalidParam)]
    [InlineData(1, 1025, 0x100000, 0, GuestMemoryError.InvalidParam)]
    [InlineData(1, 64, 1087, 0, GuestMemoryError.InvalidParam)]
    [InlineData(1, 64, 0x1000, 0x1000, GuestMemoryError.MappingPastEof)]
    [InlineData(1, 64, 0x1000, 0x10, GuestMemoryError.UnalignedOffset)]
    [InlineData(1, 64, 0x1000, 0, null)]
    public void AnInflightRegionIsChecked(ushort queues, ushort size, ulong bytes, ulong offset, GuestMemoryError? expected)
    {
        using var front = Negotiated(new RecordingDevice { QueueCount = 1, MaxQueueSize = 1024 });
        using var file = Memfd(0x1000);
        var payload = Bytes(new VhostUserInflightPayload(bytes, offset, queues, size));
        if (expected is { } error) front.Refused(error, VhostUserRequest.SetInflightFd, payload, file);
        else front.Accepted(VhostUserRequest.SetInflightFd, payload, file);
    }

    [Fact]
    public void AnInflightRegionIsSealedAndDoesNotChangeUnderAVirtqueue()
    {
        using var front = Negotiated();
        using var shared = front.ShareMemory();
        using var folder = new TestFolder();
        File.WriteAllBytes(folder["file"], new byte[0x1000]);
        using var file = Open(folder["file"]);
        using var memfd = Memfd(0x1000);
        front.Refused(GuestMemoryError.FileNotSealed, VhostUserRequest.SetInflightFd, Bytes(new VhostUserInflightPayload(0x1000, 0, 2, 16)), file);
        // Too small for the virtqueue, and without room for the second.
        foreach (var (index, payload) in new[] { (0U, new VhostUserInflightPayload(0x1000, 0, 2, 8)), (1U, new VhostUserInflightPayload(0x1000, 0, 1, 16)) })
        {
            front.Accepted(VhostUserRequest.SetInflightFd, Bytes(payload), memfd);
            front.Accepted(VhostUserRequest.SetVringNum, State(index, 16));
            front.Accepted(VhostUserRequest.SetVringAddr, Address(index, User));
            front.Accepted(VhostUserRequest.SetVringEnable, State(index, 1));
            using var kick = EventFd.Create();
            front.Refused(GuestMemoryError.InvalidParam, VhostUserRequest.SetVringKick, Bytes((ulong)index), kick);
        }

        Assert.Empty(front.Device.Running);
        var fits = Bytes(new VhostUserInflightPayload(0x1000, 0, 2, 16));
        front.Accepted(VhostUserRequest.SetInflightFd, fits, memfd);
        front.Start(0, 0);
        front.Refused(GuestMemoryError.InvalidOperation, VhostUserRequest.SetInflightFd, fits, memfd);
        Assert.NotNull(front.Device.Running[0].Inflight);
    }
}
