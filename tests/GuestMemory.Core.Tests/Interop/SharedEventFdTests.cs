using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>An eventfd that another process shares: it can make it blocking, fill it and empty it at any time.</summary>
public sealed unsafe partial class SharedEventFdTests : IDisposable
{
    private const ulong Full = ulong.MaxValue - 1;

    private readonly SafeDescriptor _event = EventFd.Create();

    public SharedEventFdTests() => MakeBlocking(_event);

    public void Dispose() => _event.Dispose();

    [Fact]
    public void ItIsSignalledAndCleared()
    {
        Assert.False(EventFd.ClearShared(_event));
        EventFd.SignalShared(_event);
        EventFd.SignalShared(_event);
        Assert.True(EventFd.ClearShared(_event));
        Assert.False(EventFd.ClearShared(_event));
    }

    [Fact]
    public void AFullOneIsSignalledAlready()
    {
        Write(Full);
        EventFd.SignalShared(_event);
        Assert.True(EventFd.ClearShared(_event));
    }

    /// <summary>It was filled between the look and the write.</summary>
    [Fact]
    public void AThreadThatWaitsForRoomIsLetGo()
    {
        EventFd.LetWritersGo(_event);
        Assert.False(EventFd.ClearShared(_event));
        Write(Full);
        var writer = new Thread(() => EventFd.Signal(_event));
        writer.Start();
        while (!writer.Join(1)) EventFd.LetWritersGo(_event);
        Assert.True(EventFd.ClearShared(_event));
    }

    internal static void MakeBlocking(SafeDescriptor descriptor) => Assert.Equal(0, fcntl(descriptor.Number, 4 /* F_SETFL */, 0));

    private void Write(ulong value) => Assert.Equal(sizeof(ulong), Interop.Descriptor.TryWrite(_event.Number, &value, sizeof(ulong)));

    [LibraryImport("libc")]
    private static partial int fcntl(int fd, int cmd, int arg);
}
