using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Tests;

/// <summary>The disk by an io_uring, with the event index.</summary>
public sealed class UringBlockDeviceTests : BlockDeviceTests
{
    private protected override bool HasEventIndex => true;

    private protected override IDiskIo OpenIo(SafeFileHandle image, VhostUserVring vring, SafeDescriptor stop)
    {
        var io = UringDiskIo.TryOpen(image, vring.Kick, stop, vring.Size);
        Assert.SkipWhen(io is null, "needs io_uring, which this kernel or a sandbox denies");
        return io!;
    }
}
