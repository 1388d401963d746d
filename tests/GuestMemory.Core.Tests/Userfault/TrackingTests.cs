using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <summary>What a VM writes, and memory that is shared with who restores it.</summary>
public sealed class TrackingTests : IDisposable
{
    private const int Pages = 256;
    private readonly TestFolder _folder = new();

    public TrackingTests() => _folder.WriteImage("image", Pages);

    public void Dispose() => _folder.Dispose();

    [UffdTheory]
    [InlineData(UffdStrategy.OnDemand, false)]
    [InlineData(UffdStrategy.Background, false)]
    [InlineData(UffdStrategy.FaultAll, true)]
    [InlineData(UffdStrategy.Window, false)]
    [InlineData(UffdStrategy.OnDemand, true)]
    public void ExactlyTheWrittenPagesAreDirty(UffdStrategy strategy, bool isAsync)
    {
        using var handler = Start(strategy, trackDirty: true);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        using var peer = new RawPeer(handler.SocketPath, region, Features(isAsync));
        peer.Send([
            new GuestRegionUffdMapping(region.HostAddress, 100 * 4096, 156 * 4096, 4096),
            new GuestRegionUffdMapping(region.HostAddress + (100 * 4096), 156 * 4096, 0, 4096)]);
        var memory = GuestMemoryMmap.FromRegions([region]);
        var written = new HashSet<int>();
        var random = new Random(5);
        for (var round = 0; round < 400; round++)
        {
            var page = random.Next(Pages);
            var at = new GuestAddress((ulong)page * 4096);
            if (page % 3 == 0)
            {
                memory.Write(at, [1]);
                written.Add(page);
            }
            else if (page == 100)
            {
                region.GetMmapRegion().Discard(100 * 4096, 4096);
                written.Add(page);
            }
            else
            {
                memory.ReadExact(at, new byte[8]);
            }
        }

        var bitmaps = handler.GetDirtyBitmaps();
        Assert.Equal([(156UL * 4096, 100L), (0UL, 156L)], bitmaps.Select(bitmap => (bitmap.StartAddress, bitmap.PageCount)));
        for (var page = 0; page < Pages; page++)
            Assert.True(written.Contains(page) == (page < 100 ? bitmaps[0].IsDirty(page) : bitmaps[1].IsDirty(page - 100)), $"page {page}, written {written.Contains(page)}");
        Assert.Null(handler.Error);
        if (isAsync) Assert.Equal(0, handler.GetFigures().WriteProtectedCount);
    }

    /// <summary>The VM goes on as soon as the kernel has handed its removal over, which may be before the handler has noted it.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void ARemovalThatIsOverIsDirty(bool isAsync)
    {
        using var handler = Start(UffdStrategy.FaultAll, trackDirty: true);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        using var peer = Connect(handler, region, isAsync);
        for (var page = 0; page < Pages; page++)
        {
            region.GetMmapRegion().Discard((ulong)page * 4096, 4096);
            // A VM that is not served yet has no bitmap; the first removal waits until it is.
            var bitmap = Assert.Single(handler.GetDirtyBitmaps());
            Assert.True(bitmap.IsDirty(page), $"page {page}");
        }

        Assert.Null(handler.Error);
    }

    /// <summary>What was written stays dirty while it is given back.</summary>
    [UffdFact]
    public void AWrittenPageIsDirtyWhileItIsRemoved()
    {
        using var handler = Start(UffdStrategy.FaultAll, trackDirty: true);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        using var peer = Connect(handler, region, isAsync: true);
        var memory = GuestMemoryMmap.FromRegions([region]);
        for (var page = 0; page < Pages; page++) memory.Write(new GuestAddress((ulong)page * 4096), [1]);
        var remover = Task.Run(() =>
        {
            for (var page = 0; page < Pages; page++) region.GetMmapRegion().Discard((ulong)page * 4096, 4096);
        });
        do Assert.Equal(Pages, Assert.Single(handler.GetDirtyBitmaps()).DirtyCount);
        while (!remover.IsCompleted);
        remover.GetAwaiter().GetResult();
    }

    [UffdTheory]
    [InlineData(UffdStrategy.OnDemand, false)]
    [InlineData(UffdStrategy.OnDemand, true)]
    [InlineData(UffdStrategy.Background, false)]
    [InlineData(UffdStrategy.Background, true)]
    public void NoWriteIsLostWhileMarksAreTaken(UffdStrategy strategy, bool isAsync)
    {
        using var handler = Start(strategy, trackDirty: true);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        using var peer = Connect(handler, region, isAsync);
        Host.Until(() => handler.ConnectionCount == 1);
        using var storm = new WriterStorm(region, Pages);
        long taken = 0;
        var began = Stopwatch.GetTimestamp();
        for (var round = 0; round < 300 || (taken <= Pages && Stopwatch.GetElapsedTime(began) < TimeSpan.FromSeconds(30)); round++)
        {
            taken += storm.Copy(handler.GetDirtyBitmaps(clear: true));
            // A look takes nothing.
            if (round % 50 == 0) _ = handler.GetDirtyBitmaps();
        }

        storm.Stop();
        storm.Copy(handler.GetDirtyBitmaps(clear: true));
        storm.AssertSame();
        Assert.True(taken > Pages, $"{taken} pages in {storm.Steps} steps");
        // What was just removed, or is just being brought in, may be told again.
        Host.Until(() => storm.Copy(handler.GetDirtyBitmaps(clear: true)) == 0);
        Assert.Equal(0, Assert.Single(handler.GetDirtyBitmaps()).DirtyCount);
        Assert.Null(handler.Error);
    }

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void WhatWasTakenIsCleanAndWhatFollowsIsNot(bool isAsync)
    {
        using var handler = Start(UffdStrategy.OnDemand, trackDirty: true);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        using var peer = Connect(handler, region, isAsync);
        var memory = GuestMemoryMmap.FromRegions([region]);
        for (var page = 0; page < 64; page++) memory.ReadExact(new GuestAddress((ulong)page * 4096), new byte[1]);
        foreach (var page in new ulong[] { 3, 63, 64, 200 }) memory.Write(new GuestAddress(page * 4096), [1]);
        region.GetMmapRegion().Discard(10 * 4096, 2 * 4096);
        Assert.Equal([3, 10, 11, 63, 64, 200], Dirty(handler, clear: false));
        Assert.Equal([3, 10, 11, 63, 64, 200], Dirty(handler, clear: true));
        Assert.Empty(Dirty(handler, clear: false));
        memory.Write(new GuestAddress(3 * 4096), [2]);
        memory.Write(new GuestAddress(11 * 4096), [2]);
        memory.Write(new GuestAddress(201 * 4096), [2]);
        memory.ReadExact(new GuestAddress(10 * 4096), new byte[1]);
        Assert.Equal([3, 11, 201], Dirty(handler, clear: true));
        Assert.Empty(Dirty(handler, clear: true));
        Assert.Null(handler.Error);
    }

    /// <summary>Pages in the page cache are mapped as they are, and protected all the same.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void WritesOfSharedPagesThatAreContinuedAreSeen(bool isAsync)
    {
        using var handler = Start(UffdStrategy.OnDemand, trackDirty: true);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).WithMemfd().Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        for (var page = 0; page < Pages; page++) memory.Write(new GuestAddress((ulong)page * 4096), [1]);
        using (var lease = region.GetMmapRegion().Lease()) Assert.Equal(0, Mman.TryAdvise(lease.Address, lease.Length, Mman.MADV_DONTNEED));
        using var peer = new RawPeer(handler.SocketPath, region,
            Features(isAsync) | Userfaultfd.UFFD_FEATURE_MISSING_SHMEM | Userfaultfd.UFFD_FEATURE_MINOR_SHMEM | Userfaultfd.UFFD_FEATURE_WP_UNPOPULATED,
            Userfaultfd.UFFDIO_REGISTER_MODE_MISSING | Userfaultfd.UFFDIO_REGISTER_MODE_MINOR);
        peer.Send([new GuestRegionUffdMapping(region.HostAddress, Pages * 4096, 0, 4096)]);
        for (var page = 0; page < Pages; page += 2) memory.ReadExact(new GuestAddress((ulong)page * 4096), new byte[1]);
        Assert.Empty(Dirty(handler, clear: true));
        foreach (var page in new ulong[] { 0, 1, 100 }) memory.Write(new GuestAddress(page * 4096), [2]);
        Assert.Equal([0, 1, 100], Dirty(handler, clear: true));
        memory.Write(new GuestAddress(100 * 4096), [3]);
        Assert.Equal([100], Dirty(handler, clear: true));
        Assert.Null(handler.Error);
    }

    /// <summary>Of a shared page that is protected and given back the kernel keeps that it was protected, which is no page: its removal is told once.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void ASharedPageThatIsGivenBackIsToldOnce(bool isAsync)
    {
        using var handler = Start(UffdStrategy.OnDemand, trackDirty: true);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).WithMemfd().Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        using var peer = new RawPeer(handler.SocketPath, region, Features(isAsync) | Userfaultfd.UFFD_FEATURE_MISSING_SHMEM | Userfaultfd.UFFD_FEATURE_WP_UNPOPULATED);
        peer.Send([new GuestRegionUffdMapping(region.HostAddress, Pages * 4096, 0, 4096)]);
        foreach (var page in new ulong[] { 3, 4, 7 }) memory.Write(new GuestAddress(page * 4096), [1]);
        Assert.Equal([3, 4, 7], Dirty(handler, clear: true));
        Assert.Empty(Dirty(handler, clear: true));
        region.GetMmapRegion().Discard(3 * 4096, 2 * 4096);
        Host.Until(() => Dirty(handler, clear: true).Length == 0);
        Assert.Empty(Dirty(handler, clear: true));
        // And again where it comes again.
        memory.Write(new GuestAddress(4 * 4096), [2]);
        Assert.Equal([4], Dirty(handler, clear: true));
        Assert.Empty(Dirty(handler, clear: true));
        Assert.Null(handler.Error);
    }

    /// <summary>The VM may write as soon as the kernel has made a page writable, which is before the handler has noted that.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void AWriteWhosePageIsJustMadeWritableIsInOneAnswerOnly(bool isAsync)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        using var peer = new RawPeer(_folder["h.sock"], region, Features(isAsync), Userfaultfd.UFFDIO_REGISTER_MODE_MISSING | Userfaultfd.UFFDIO_REGISTER_MODE_WP, connect: false);
        using var state = new UffdVmState(Pages) { IsTracked = true };
        var tracker = new WriteTracker(state, [new GuestRegionUffdMapping(region.HostAddress, Pages * 4096, 0, 4096)], peer.Descriptor, Environment.ProcessId);
        state.BeginOpening(5, 1);
        Assert.False(tracker.TryGet(take: true, out _));
        state.EndOpening();
        Assert.True(tracker.TryGet(take: true, out var bitmaps));
        Assert.Equal(1, Assert.Single(bitmaps).DirtyCount);
        Assert.True(Assert.Single(bitmaps).IsDirty(5));
        tracker.Confirm();
        Assert.True(tracker.TryGet(take: true, out bitmaps));
        Assert.Equal(0, Assert.Single(bitmaps).DirtyCount);
    }

    [UffdFact]
    public void WhoDoesNotTrackSaysSo()
    {
        using var handler = Start(UffdStrategy.OnDemand, trackDirty: false);
        Assert.Equal(GuestMemoryError.DirtyTrackingOff, Assert.Throws<GuestMemoryException>(() => handler.GetDirtyBitmaps()).Error);
    }

    /// <summary>Memory that is in the page cache already, written by another mapping: it is mapped, and nothing is copied.</summary>
    [UffdFact]
    public unsafe void SharedPagesAreContinued()
    {
        using var handler = Start(UffdStrategy.OnDemand, trackDirty: false);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).WithMemfd().Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        var page = new byte[4096];
        for (var i = 0; i < 32; i++)
        {
            TestFolder.Fill(page, 5000 + i);
            memory.Write(new GuestAddress((ulong)i * 4096), page);
        }

        // The pages stay in the memfd; this mapping of it forgets them.
        using (var lease = region.GetMmapRegion().Lease()) Assert.Equal(0, Mman.TryAdvise(lease.Address, lease.Length, Mman.MADV_DONTNEED));
        using var peer = new RawPeer(handler.SocketPath, region,
            Userfaultfd.UFFD_FEATURE_EVENT_REMOVE | Userfaultfd.UFFD_FEATURE_MISSING_SHMEM | Userfaultfd.UFFD_FEATURE_MINOR_SHMEM,
            Userfaultfd.UFFDIO_REGISTER_MODE_MISSING | Userfaultfd.UFFDIO_REGISTER_MODE_MINOR);
        peer.Send([new GuestRegionUffdMapping(region.HostAddress, Pages * 4096, 0, 4096)]);
        var expected = new byte[4096];
        for (var i = 0; i < 64; i++)
        {
            memory.ReadExact(new GuestAddress((ulong)i * 4096), page);
            TestFolder.Fill(expected, i < 32 ? 5000 + i : i);
            Assert.True(expected.AsSpan().SequenceEqual(page), $"page {i}");
        }

        Host.Until(() => handler.FaultCount == 64);
        var figures = handler.GetFigures();
        Assert.Equal((32L, 32L), (figures.ContinuedCount, figures.CopiedCount));
        Assert.Null(handler.Error);
    }

    private UffdHandler Start(UffdStrategy strategy, bool trackDirty) => UffdHandler.Start(new UffdHandlerOptions
    {
        SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = strategy, TrackDirty = trackDirty, WindowSize = 16384,
    });

    private static ulong Features(bool isAsync) =>
        Userfaultfd.UFFD_FEATURE_EVENT_REMOVE | (isAsync ? Userfaultfd.UFFD_FEATURE_WP_ASYNC | Userfaultfd.UFFD_FEATURE_WP_UNPOPULATED : 0);

    private static long[] Dirty(UffdHandler handler, bool clear)
    {
        var bitmap = Assert.Single(handler.GetDirtyBitmaps(clear));
        var pages = new long[bitmap.PageCount];
        return pages[..bitmap.ListPages(pages)];
    }

    private static RawPeer Connect(UffdHandler handler, GuestRegionMmap region, bool isAsync)
    {
        var peer = new RawPeer(handler.SocketPath, region, Features(isAsync));
        peer.Send([new GuestRegionUffdMapping(region.HostAddress, Pages * 4096, 0, 4096)]);
        return peer;
    }
}
