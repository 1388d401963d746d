namespace GuestMemory.Core.Tests;

/// <summary>What changes memory without writing to it is marked like a write.</summary>
public sealed class ContentChangeTests : IDisposable
{
    private const ulong Page = 0x1000;
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    /// <summary>Base image, clear, discard, differences: the two together are the memory.</summary>
    [Theory]
    [InlineData("anonymous")]
    [InlineData("memfd")]
    [InlineData("file")]
    [InlineData("served")]
    public void DiscardedPagesAreInTheNextDiff(string backing)
    {
        var memory = _memory.Space(backing, (0, 8 * Page));
        var region = memory.Regions[0];
        region.Write(default, Enumerable.Repeat((byte)7, (int)region.Size).ToArray());
        var image = _memory.Folder["image"];
        RawImage.WriteFull(memory, image, overwrite: true);
        region.RequireTracker().Reset();
        region.GetMmapRegion().Discard(2 * Page, 3 * Page);
        Assert.Equal(0b11100UL, region.RequireTracker().Snapshot()[0]);
        RawImage.WriteDirty(memory, image, force: false);
        var content = new byte[region.Size];
        memory.ReadExact(new GuestAddress(0), content);
        Assert.Equal(content, File.ReadAllBytes(image));
        Assert.Equal((7, 0), (content[0], content[2 * Page]));
    }

    [Fact]
    public void ADiscardThatIsRefusedMarksNothing()
    {
        var region = _memory.Region("anonymous", 0, 8 * Page);
        Assert.Throws<SyscallException>(() => region.GetMmapRegion().Discard(1, Page));
        Assert.Equal(GuestMemoryError.InvalidBackendAddress, Failure.Of(() => region.GetMmapRegion().Discard(Page, 8 * Page)));
        Assert.Equal(0UL, region.RequireTracker().Snapshot()[0]);
    }

    [Fact]
    public void MemoryOfASlotMarksWhatIsRemovedFromIt()
    {
        using var mapping = SlotMapping.Anonymous(4 * Page);
        var tracker = new AtomicBitmap(4 * Page, Page);
        mapping.Memory.SetTracker(tracker);
        mapping.Remove(Page, 2 * Page);
        Assert.Equal(0b0110UL, tracker.Snapshot()[0]);
        tracker.Reset();
        mapping.Pageout(0, 4 * Page);
        mapping.Msync(0, 4 * Page);
        Assert.Equal(0UL, tracker.Snapshot()[0]);
    }

    [Fact]
    public void MemoryThatASlotBorrowsIsMarkedInItsRegion()
    {
        var region = _memory.Region("memfd", 0, 8 * Page);
        using var mapping = SlotMapping.External((nint)region.GetMmapRegion().HostAddress + (nint)(2 * Page), 4 * Page, region.GetMmapRegion());
        mapping.Remove(Page, 2 * Page);
        Assert.Equal(0b11000UL, region.RequireTracker().Snapshot()[0]);
    }

    [Fact]
    public void AnArenaMarksWhatIsMappedOverItsMemory()
    {
        using var arena = new SlotArena(4 * Page);
        var tracker = new AtomicBitmap(4 * Page, Page);
        arena.Memory.SetTracker(tracker);
        arena.AddAnonymous(0, Page, MemoryProtection.ReadWrite);
        Assert.Equal(0b0001UL, tracker.Snapshot()[0]);
        using var file = Memfd.CreateSealed("part", 0x2000, 0);
        arena.AddFdMapping(Page, 2 * Page, file, 0, MemoryProtection.ReadWrite);
        Assert.Equal(0b0111UL, tracker.Snapshot()[0]);
        tracker.Reset();
        arena.RemoveMapping(Page, Page);
        Assert.Equal(0b0010UL, tracker.Snapshot()[0]);
    }

    [KvmFact]
    public void AnInflatedBalloonIsMarked()
    {
        var memory = _memory.Space("anonymous", (0, 8 * Page));
        using var vm = new KvmVm(memory);
        vm.HandleBalloonEvent(BalloonEvent.Inflate(new GuestAddress(3 * Page), 2 * Page));
        Assert.Equal(0b11000UL, memory.Regions[0].RequireTracker().Snapshot()[0]);
    }
}
