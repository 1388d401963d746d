using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <content>What VMs wrote, whichever worker serves them.</content>
public sealed partial class HostTests
{
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void WhatAVmWroteIsKnownToEveryWorker(bool isAsync)
    {
        _folder.WriteImage("image", 256);
        var handler = UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], TrackDirty = true });
        Assert.Empty(handler.GetDirtyBitmaps());
        var memory = Memory((0, 256));
        var region = memory.Regions[0];
        using var peer = new RawPeer(handler.SocketPath, region, Userfaultfd.UFFD_FEATURE_EVENT_REMOVE | (isAsync ? Userfaultfd.UFFD_FEATURE_WP_ASYNC | Userfaultfd.UFFD_FEATURE_WP_UNPOPULATED : 0));
        peer.Send([
            new GuestRegionUffdMapping(region.GetHostAddress(default), 100 * 4096, 156 * 4096, 4096),
            new GuestRegionUffdMapping(region.GetHostAddress(default) + (100 * 4096), 156 * 4096, 0, 4096)]);
        for (var page = 0; page < 256; page += 2) memory.ReadExact(new GuestAddress((ulong)page * 4096), new byte[1]);
        foreach (var page in new ulong[] { 7, 64, 99 }) memory.Write(new GuestAddress(page * 4096), [1]);
        region.GetMmapRegion().Discard(200 * 4096, 4096);
        Assert.True(Signal(handler.WorkerProcessId, 9));
        memory.Write(new GuestAddress(100 * 4096), [1]);
        memory.Write(new GuestAddress(255 * 4096), [1]);
        var bitmaps = handler.GetDirtyBitmaps();
        Assert.Equal([(156UL * 4096, 100L), (0UL, 156L)], bitmaps.Select(bitmap => (bitmap.StartAddress, bitmap.PageCount)));
        Assert.Equal([7, 64, 99], Pages(bitmaps[0]));
        Assert.Equal([0, 100, 155], Pages(bitmaps[1]));
        Assert.Contains($"process {Environment.ProcessId}", bitmaps[0].Source, StringComparison.Ordinal);
        // The connection is as good as before.
        Host.Until(() => handler.ConnectionCount == 1);
        handler.Stop();
        Assert.Equal(GuestMemoryError.HandlerGone, Assert.Throws<GuestMemoryException>(() => handler.GetDirtyBitmaps()).Error);
    }

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void ARemovalThatIsOverIsDirty(bool isAsync)
    {
        const int count = 2048;
        var handler = StartTracking(count, UffdStrategy.FaultAll);
        using var peer = Connect(handler, count, isAsync);
        Host.Until(() => handler.ConnectionCount == 1);
        for (var page = 0; page < count; page += 3)
        {
            _regions[0].GetMmapRegion().Discard((ulong)page * 4096, 4096);
            Assert.True(Assert.Single(handler.GetDirtyBitmaps()).IsDirty(page), $"page {page}");
        }
    }

    /// <summary>The worker dies again and again while writes are taken.</summary>
    [UffdTheory]
    [InlineData(UffdStrategy.OnDemand, false)]
    [InlineData(UffdStrategy.Background, false)]
    [InlineData(UffdStrategy.OnDemand, true)]
    public void NoWriteIsLostWhenTheWorkerDiesWhileMarksAreTaken(UffdStrategy strategy, bool isAsync)
    {
        const int count = 512;
        var handler = StartTracking(count, strategy);
        using var peer = Connect(handler, count, isAsync);
        Host.Until(() => handler.ConnectionCount == 1);
        using var storm = new WriterStorm(_regions[0], count);
        var over = false;
        var killer = Task.Run(() =>
        {
            for (long seen = 0; !Volatile.Read(ref over); Thread.Sleep(Random.Shared.Next(1, 20)))
            {
                // A worker that never gets to serve is another matter, see MaxFailedStarts.
                if (storm.Steps < seen + 200) continue;
                seen = storm.Steps;
                if (handler.WorkerProcessId is var worker and > 0) Signal(worker, 9);
            }
        });
        long taken = 0;
        bool IsEnough() => handler.WorkerCount > 4 && taken > count;
        for (var clock = Stopwatch.StartNew(); handler.WorkerCount < 15 && (clock.Elapsed < TimeSpan.FromSeconds(20) || (!IsEnough() && clock.Elapsed < Host.Patience));) taken += storm.Copy(handler.GetDirtyBitmaps(clear: true));
        Volatile.Write(ref over, true);
        killer.GetAwaiter().GetResult();
        storm.Stop();
        storm.Copy(handler.GetDirtyBitmaps(clear: true));
        storm.AssertSame();
        Assert.True(IsEnough(), $"{handler.WorkerCount} workers, {taken} pages in {storm.Steps} steps");
        // Each of the dead may leave one page that is told again and again.
        Host.Until(() => storm.Copy(handler.GetDirtyBitmaps(clear: true)) < handler.WorkerCount);
        Assert.InRange(Assert.Single(handler.GetDirtyBitmaps()).DirtyCount, 0, handler.WorkerCount);
    }

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void WhatWasTakenAndNotConfirmedIsToldAgain(bool isAsync)
    {
        var handler = StartTracking(64, UffdStrategy.OnDemand);
        using var peer = Connect(handler, 64, isAsync);
        var memory = GuestMemoryMmap.FromRegions(_regions);
        memory.Write(new GuestAddress(5 * 4096), [1]);
        using (var client = UffdControlClient.TryConnect(UffdRuntimeFolder.SocketOf(runtime.Folder.Path, handler.ProcessId), out _)!)
        {
            using var file = client.AskForFile(new UffdControlRequest { Request = UffdControlRequest.Dirty, Clear = true }, CancellationToken.None, out _)!;
            Assert.Equal([5], Pages(Assert.Single(WrittenPages.FromFile(file))));
        }

        memory.Write(new GuestAddress(6 * 4096), [1]);
        Assert.Equal([5, 6], Pages(Assert.Single(handler.GetDirtyBitmaps(clear: true))));
        Assert.Empty(Pages(Assert.Single(handler.GetDirtyBitmaps(clear: true))));
        memory.Write(new GuestAddress(5 * 4096), [2]);
        Assert.Equal([5], Pages(Assert.Single(handler.GetDirtyBitmaps(clear: true))));
    }

    [Fact]
    public void WhoDoesNotTrackSaysSoAndGoesOn()
    {
        var handler = Start(1);
        Assert.Equal(GuestMemoryError.DirtyTrackingOff, Assert.Throws<GuestMemoryException>(() => handler.GetDirtyBitmaps()).Error);
        Assert.Equal(UffdHandlerState.Listening, handler.State);
        Assert.False(handler.Wait(TimeSpan.Zero));
    }
}
