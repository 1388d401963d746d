namespace GuestMemory.Core.Tests;

/// <summary>Mappings and arenas: the vectors of 11.7.</summary>
public sealed class ArenaTests
{
    private static readonly ulong s_page = HostPage.Size;

    [Fact]
    public void V11_7_PartsOfAnArenaComeAndGo()
    {
        using var arena = new SlotArena(0x40000);
        arena.AddAnonymous(0, 4 * s_page, MemoryProtection.ReadWrite);
        Assert.Equal(4, arena.Memory.TryWrite(s_page, [1, 2, 3, 4], out _));
        arena.RemoveMapping(0, s_page);
        Assert.Equal(1, Read(arena, s_page));
        arena.RemoveMapping(s_page, 2 * s_page);
        Assert.Equal(0, Read(arena, s_page));
        Assert.Equal(0, arena.Memory.TryWrite(s_page, [1], out var error));
        Assert.Equal(Errno.EFAULT, error);
        Assert.Equal(1, arena.Memory.TryWrite(3 * s_page, [1], out _));
        arena.RemoveMapping(3 * s_page, s_page - 1);
        Assert.Equal(0, Read(arena, 3 * s_page));
    }

    [Fact]
    public void V11_7_WhatIsOutsideIsRefused()
    {
        using var arena = new SlotArena(s_page);
        Assert.Equal(GuestMemoryError.NotPageAligned, ErrorOf(() => arena.AddAnonymous(s_page + 1, s_page, MemoryProtection.Read)));
        Assert.Equal(GuestMemoryError.InvalidAddress, ErrorOf(() => arena.AddAnonymous(0, s_page + 1, MemoryProtection.Read)));
        Assert.Equal(GuestMemoryError.InvalidAddress, ErrorOf(() => arena.AddAnonymous(ulong.MaxValue - s_page + 1, s_page, MemoryProtection.Read)));
        Assert.Equal(GuestMemoryError.InvalidAddress, ErrorOf(() => arena.RemoveMapping(s_page, s_page)));
        Assert.Equal(GuestMemoryError.InvalidAddress, ErrorOf(() => arena.RemoveMapping(0, ulong.MaxValue)));
    }

    [Fact]
    public void V11_7_PartsMayOverlap()
    {
        using var arena = new SlotArena(12 * s_page);
        foreach (var (page, pages) in ((ulong, ulong)[])[(4, 4), (2, 3), (7, 3), (3, 6)]) arena.AddAnonymous(page * s_page, pages * s_page, MemoryProtection.ReadWrite);
        foreach (var page in (ulong[])[2, 3, 8, 9]) Assert.Equal(1, arena.Memory.TryWrite(page * s_page, [7], out _));
        foreach (var (page, pages) in ((ulong, ulong)[])[(4, 4), (2, 3), (7, 3), (3, 6)]) arena.RemoveMapping(page * s_page, pages * s_page);
        foreach (var page in (ulong[])[2, 3, 8, 9]) Assert.Equal(0, Read(arena, page * s_page));
    }

    [Fact]
    public void V11_7_MsyncAndAdviceCheckTheirRange()
    {
        using var arena = new SlotArena(4 * s_page);
        arena.AddAnonymous(0, 4 * s_page, MemoryProtection.ReadWrite);
        foreach (var operation in (Action<ulong, ulong>[])[arena.Msync, arena.Pageout, arena.Remove])
        {
            operation(0, s_page);
            operation(0, arena.Size);
            operation(s_page, arena.Size - s_page);
            Assert.Equal(GuestMemoryError.InvalidAddress, ErrorOf(() => operation(s_page, arena.Size)));
            Assert.Equal(GuestMemoryError.NotPageAligned, ErrorOf(() => operation(1, 1)));
        }
    }

    [Fact]
    public void AMappingBecomesAnArenaWithItsContent()
    {
        var mapping = SlotMapping.Anonymous(2 * s_page);
        mapping.Memory.TryWrite(0, [5], out _);
        using var arena = SlotArena.FromMapping(mapping);
        Assert.Equal((mapping.HostAddress, 5), (arena.HostAddress, Read(arena, 0)));
        arena.RemoveMapping(0, s_page);
        Assert.Equal(0, Read(arena, 0));
    }

    [Fact]
    public void V11_7_BadMappingsAreRefused()
    {
        using var memfd = Memfd.CreateSealed("test", (long)s_page, 0);
        using var closed = new SafeDescriptor(-1);
        Assert.Equal(Errno.EINVAL, Assert.Throws<SyscallException>(() => SlotMapping.Anonymous(0)).ErrorCode);
        Assert.Equal(Errno.ENOMEM, Assert.Throws<SyscallException>(() => SlotMapping.Anonymous(ulong.MaxValue)).ErrorCode);
        Assert.Equal(Errno.EBADF, Assert.Throws<SyscallException>(() => SlotMapping.FromFile(closed, 0, 1)).ErrorCode);
        Assert.Equal(GuestMemoryError.InvalidOffset, ErrorOf(() => SlotMapping.FromFile(memfd, 1UL << 63, 1)));
        Assert.Equal(GuestMemoryError.InvalidPointer, ErrorOf(() => SlotMapping.External(1, 1)));
        using var mapping = SlotMapping.Anonymous(5);
        Assert.Equal(5, mapping.Memory.TryWrite(0, [1, 2, 3, 4, 5, 6], out _));
        var overflow = Assert.Throws<VolatileMemoryException>(() => mapping.Memory.GetSlice(ulong.MaxValue, 3));
        Assert.Equal(GuestMemoryError.Overflow, overflow.Error);
        var outside = Assert.Throws<VolatileMemoryException>(() => mapping.Memory.GetSlice(3, 3));
        Assert.Equal((GuestMemoryError.OutOfBounds, 6UL), (outside.Error, outside.Address));
        Assert.Equal(GuestMemoryError.AddFdMappingIsUnsupported, ErrorOf(() => mapping.AddFdMapping(0, 1, memfd, 0, MemoryProtection.Read)));
        Assert.Equal(GuestMemoryError.RemoveMappingIsUnsupported, ErrorOf(() => mapping.RemoveMapping(0, 1)));
    }

    /// <summary>A socket can be asked to be mapped, and refuses when what was there would be gone already.</summary>
    [Fact]
    public void WhatAFileRefusesLeavesWhatIsThere()
    {
        using var memfd = Memfd.CreateSealed("test", (long)s_page, 0);
        var (socket, other) = UnixSocket.CreatePair(nonBlocking: false);
        using var arena = new SlotArena(4 * s_page);
        using (socket)
        using (other)
        {
            arena.AddFdMapping(s_page, s_page, memfd, 0, MemoryProtection.ReadWrite);
            Assert.Equal(1, arena.Memory.TryWrite(s_page, [42], out _));
            Assert.ThrowsAny<SyscallException>(() => arena.AddFdMapping(s_page, s_page, socket, 0, MemoryProtection.ReadWrite));
            Assert.ThrowsAny<SyscallException>(() => arena.AddFdMapping(0, s_page, socket, 0, MemoryProtection.ReadWrite));
        }

        Assert.Equal(42, Read(arena, s_page));
        Assert.Equal(0, Read(arena, 0));
    }

    /// <summary>The kernel maps at least one huge page, wherever the arena ends. The pages are not needed: nothing touches them.</summary>
    [Fact]
    public void APartOfAHugePageIsRefused()
    {
        const ulong Huge = 2 << 20;
        using var around = SlotMapping.Anonymous(3 * Huge);
        var start = HostPage.RoundUp(around.HostAddress, Huge);
        var inside = SlotMapping.External((nint)start, s_page);
        using var arena = SlotArena.FromMapping(inside);
        using var huge = Memfd.CreateSealed("huge", (long)Huge, 21);
        Assert.Equal(1, around.Memory.TryWrite(start + s_page - around.HostAddress, [42], out _));
        Assert.Equal(GuestMemoryError.UnalignedSize, ErrorOf(() => arena.AddFdMapping(0, s_page, huge, 0, MemoryProtection.Read)));
        Assert.Equal(GuestMemoryError.InvalidAddress, ErrorOf(() => arena.AddFdMapping(0, Huge, huge, 0, MemoryProtection.Read)));
        Assert.Equal(42, Read(around, start + s_page - around.HostAddress));
    }

    private static int Read(SlotMemory mapping, ulong offset)
    {
        var bytes = new byte[1];
        Assert.Equal(1, mapping.Memory.TryRead(offset, bytes, out _));
        return bytes[0];
    }

    private static GuestMemoryError ErrorOf(Action action) => Assert.ThrowsAny<GuestMemoryException>(action).Error;
}
