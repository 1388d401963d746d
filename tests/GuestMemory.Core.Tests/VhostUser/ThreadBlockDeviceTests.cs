using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Tests;

/// <summary>The disk by threads, without the event index.</summary>
public sealed class ThreadBlockDeviceTests : BlockDeviceTests
{
    private protected override bool HasEventIndex => false;

    private protected override IDiskIo OpenIo(SafeFileHandle image, VhostUserVring vring, SafeDescriptor stop) => new ThreadDiskIo(image, vring.Kick, stop);
}
