namespace GuestMemory.Core.Tests;

/// <summary>A system call that is denied, or that the kernel does not know, is not a page that cannot be had.</summary>
public sealed class SandboxTests : IDisposable
{
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [InlineData(Errno.EPERM)]
    [InlineData(Errno.ENOSYS)]
    public void ADeniedSystemCallIsNamed(int errno)
    {
        var region = _memory.Region("file", 0, 0x2000);
        var memory = GuestMemoryMmap.FromRegions([region]);
        var buffer = new byte[16];
        Sandbox.WithoutProcessVm(errno, () =>
        {
            Denied("process_vm_readv", () => region.AsVolatileSlice().Read(0, buffer));
            Denied("process_vm_writev", () => region.AsVolatileSlice().Write(0, buffer));
            Denied("process_vm_readv", () => region.Read(default, buffer));
            Denied("process_vm_readv", () => memory.ReadExact(new GuestAddress(8), buffer));
            Denied("process_vm_writev", () => memory.WriteExact(new GuestAddress(8), buffer));
            // What needs no such call goes on.
            region.AsVolatileSlice().Store(8, 7UL, AtomicOrdering.SeqCst);
        });
        Assert.Equal(7UL, region.ReadObject<ulong>(new MemoryRegionAddress(8)));

        void Denied(string function, Action access)
        {
            var error = Assert.Throws<SyscallException>(access);
            Assert.Equal((GuestMemoryError.SyscallFailed, function, errno), (error.Error, error.Function, error.ErrorCode));
            Assert.Contains("sandbox", error.Message, StringComparison.Ordinal);
            Assert.DoesNotContain("truncated", error.Message, StringComparison.Ordinal);
        }
    }

    [Theory]
    [InlineData("anonymous")]
    [InlineData("file")]
    [InlineData("served")]
    public void OnlyAtomicAccessNeedsPopulate(string backing)
    {
        var region = _memory.Region(backing, 0, 0x2000);
        var slice = region.AsVolatileSlice();
        slice.WriteObject(8, 7UL);
        Sandbox.WithoutPopulate(() =>
        {
            Assert.Equal(7UL, slice.ReadObject<ulong>(8));
            slice.WriteObject(8, 9UL);
            var values = new ulong[2];
            Assert.Equal(2, slice.CopyTo(values));
            Assert.Equal([0UL, 9UL], values);
            slice.CopyFrom<ulong>([1, 2]);
            if (!region.GetMemory().IsGuarded)
            {
                Assert.Equal(2UL, slice.Load<ulong>(8, AtomicOrdering.SeqCst));
                return;
            }

            foreach (var access in (Action[])[() => slice.Load<ulong>(8, AtomicOrdering.SeqCst), () => slice.Store(8, 1UL, AtomicOrdering.SeqCst), () => slice.GetAtomicRef<uint>(8).Exchange(1)])
            {
                var error = Assert.Throws<SyscallException>(access);
                Assert.Equal((GuestMemoryError.SyscallFailed, "madvise", Errno.EINVAL), (error.Error, error.Function, error.ErrorCode));
                Assert.Contains("Linux 5.14", error.Message, StringComparison.Ordinal);
            }
        });
        Assert.Equal((1UL, 2UL), (slice.ReadObject<ulong>(0), slice.ReadObject<ulong>(8)));
    }

    [Fact]
    public void APageThatCannotBeHadIsStillThat()
    {
        var region = _memory.Region("file", 0, 0x2000);
        using (var file = File.OpenWrite(region.GetMmapRegion().BackingPath!)) file.SetLength(0x1000);
        var error = Assert.Throws<GuestMemoryException>(() => region.ReadObject<ulong>(new MemoryRegionAddress(0x1000)));
        Assert.Equal((GuestMemoryError.PageNotAccessible, 0x1000UL), (error.Error, error.Address));
        Assert.Contains("truncated", error.Message, StringComparison.Ordinal);
        Assert.Equal(GuestMemoryError.PageNotAccessible, Failure.Of(() => region.Load<ulong>(new MemoryRegionAddress(0x1000), AtomicOrdering.SeqCst)));
    }
}
