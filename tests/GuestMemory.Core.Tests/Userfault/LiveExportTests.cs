using System.Security.Cryptography;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Tests;

/// <summary>The memory of a VM that runs, written to a file as it is at one instant, under two writers that also give pages back (live-peer.c).</summary>
[Collection(RuntimeFolder.Name)]
public sealed class LiveExportTests(RuntimeFolder runtime) : VmFixture(runtime)
{
    private const int Pages = 1024;
    private static readonly int s_rounds = Setting("GUESTMEMORY_LIVE_ROUNDS", 50);
    private LivePeer? _peer;

    [CompilerTheory]
    [InlineData(UffdStrategy.OnDemand, false, false)]
    [InlineData(UffdStrategy.Background, false, false)]
    [InlineData(UffdStrategy.OnDemand, true, false)]
    [InlineData(UffdStrategy.OnDemand, false, true)]
    [InlineData(UffdStrategy.Background, true, true)]
    public void TheImageIsTheMemoryOfOneInstant(UffdStrategy strategy, bool stopsVmm, bool process)
    {
        var (handler, peer) = Begin(strategy, process);
        using var _ = peer;
        peer.Do("go");
        var before = new ulong[2];
        for (var round = 0; round < s_rounds; round++)
        {
            var vm = Assert.Single(handler.GetVms());
            var info = vm.ExportLive(Folder["live"], overwrite: true, new LiveExportOptions { StopsVmm = stopsVmm });
            Assert.Equal((Folder["live"], ImageFormat.Raw, Pages * 4096UL), (info.Path, info.Format, info.Size));
            before = peer.AssertInstant(File.ReadAllBytes(Folder["live"]));
            if (round % 10 == 0) peer.AwaitSteps(100);
        }

        // It goes on, and nothing of it was harmed.
        peer.AwaitSteps(1000);
        var steps = peer.Do("stop");
        Assert.True(steps[0] > before[0] && steps[1] > before[1]);
        Assert.Equal(steps, peer.AssertInstant(Read(handler)));
        Assert.Null(handler.Error);
    }

    /// <summary>Threads that wait for a page are interrupted: where a page could not be held for that, there is an error and no image of two instants.</summary>
    [CompilerFact]
    public void SignalsDoNotMixInstants()
    {
        var (handler, peer) = Begin(UffdStrategy.OnDemand, process: false, "signals");
        using var _ = peer;
        peer.Do("go");
        var done = 0;
        for (var round = 0; round < s_rounds; round++)
        {
            try
            {
                Assert.Single(handler.GetVms()).ExportLive(Folder["live"], overwrite: true);
            }
            catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.LiveFailed)
            {
                continue;
            }

            peer.AssertInstant(File.ReadAllBytes(Folder["live"]));
            done++;
        }

        Assert.True(done > s_rounds / 2, $"{done} of {s_rounds}");
        peer.AwaitSteps(100);
    }

    /// <summary>While the VMM is stopped nothing changes, and the image is what it has then.</summary>
    [CompilerTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void TheImageIsWhatTheVmHasWhileItIsStopped(bool process)
    {
        var (handler, peer) = Begin(UffdStrategy.OnDemand, process);
        using var _ = peer;
        peer.Do("go");
        for (var round = 0; round < 10; round++)
        {
            peer.AwaitSteps(50);
            byte[] stopped = [];
            var info = Assert.Single(handler.GetVms()).ExportLive(Folder["live"], overwrite: true, new LiveExportOptions
            {
                StopsVmm = true,
                Digest = true,
                AtInstant = () =>
                {
                    Assert.All(Directory.GetDirectories($"/proc/{peer.Id}/task"), static task => Assert.Contains("\nState:\tt", File.ReadAllText(Path.Combine(task, "status")), StringComparison.Ordinal));
                    stopped = Read(handler);
                    Assert.Equal(stopped, Read(handler));
                },
            });
            Assert.Equal(stopped, File.ReadAllBytes(Folder["live"]));
            Assert.Equal(Convert.ToHexStringLower(SHA256.HashData(stopped)), info.Digest);
        }

        peer.AwaitSteps(100);
        Assert.Equal("0", File.ReadLines($"/proc/{peer.Id}/status").First(static line => line.StartsWith("TracerPid", StringComparison.Ordinal))[11..]);
    }

    /// <summary>Marks are neither taken nor forgotten: a copy that is kept up to date with what is dirty stays the same as the VM.</summary>
    [CompilerTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void WhatIsWrittenMeanwhileIsMarked(bool process)
    {
        var (handler, peer) = Begin(UffdStrategy.OnDemand, process);
        using var _ = peer;
        peer.Do("go");
        peer.AwaitSteps(100);
        peer.Do("stop");
        var vm = Assert.Single(handler.GetVms());
        Host.Until(() => Sum(vm.GetDirtyBitmaps(clear: true)) == 0);
        var copy = Read(handler);
        peer.Do("go");
        for (var round = 0; round < 10; round++)
        {
            vm.ExportLive(Folder["live"], overwrite: true);
            peer.AwaitSteps(10);
            Copy(vm.GetDirtyBitmaps(clear: true));
        }

        peer.Do("stop");
        vm.ExportLive(Folder["live"], overwrite: true);
        Copy(vm.GetDirtyBitmaps(clear: true));
        Assert.True(copy.AsSpan().SequenceEqual(Read(handler)));
        Assert.True(copy.AsSpan().SequenceEqual(File.ReadAllBytes(Folder["live"])));
        // An export of a VM that stands still marks nothing.
        vm.GetDirtyBitmaps(clear: true);
        // Pages that were given back and not touched since.
        var marked = Sum(vm.GetDirtyBitmaps());
        Assert.InRange(marked, 0, Pages / 2);
        vm.ExportLive(Folder["live"], overwrite: true);
        Assert.Equal(marked, Sum(vm.GetDirtyBitmaps()));

        void Copy(IReadOnlyList<DirtyBitmap> bitmaps)
        {
            var now = Read(handler);
            foreach (var range in bitmaps.SelectMany(static bitmap => bitmap.GetRanges())) now.AsSpan((int)range.Address, (int)range.Size).CopyTo(copy.AsSpan((int)range.Address));
        }

        static long Sum(IReadOnlyList<DirtyBitmap> bitmaps) => bitmaps.Sum(static bitmap => bitmap.DirtyCount);
    }

    /// <summary>A page that has not come is the image's, does not come by the export, and may come meanwhile.</summary>
    [CompilerTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void WhatHasNotComeIsTheImages(bool process)
    {
        var (handler, peer) = Begin(UffdStrategy.OnDemand, process);
        using var _ = peer;
        Host.Until(() => handler.ConnectionCount == 1);
        peer.Do("steps");
        var before = handler.GetFigures().PresentPageCount;
        var info = Assert.Single(handler.GetVms()).ExportLive(Folder["live"], overwrite: false);
        Assert.Equal(File.ReadAllBytes(Folder["image"]), File.ReadAllBytes(Folder["live"]));
        Assert.Equal((Pages * 4096UL, Pages), (info.BytesWritten, info.PageCount));
        Assert.Equal(before, handler.GetFigures().PresentPageCount);
    }

    /// <summary>A VM that gives memory back while that must be held goes on when all is copied, and so does one whose export is cancelled.</summary>
    [CompilerTheory]
    [InlineData("cancel", false)]
    [InlineData("throw", false)]
    [InlineData("kill", false)]
    [InlineData("stop", false)]
    [InlineData("cancel", true)]
    [InlineData("throw", true)]
    [InlineData("kill", true)]
    [InlineData("stop", true)]
    [InlineData("worker", true)]
    public void AnExportThatEndsEarlyLeavesNothingBehind(string how, bool process)
    {
        var (handler, peer) = Begin(UffdStrategy.OnDemand, process);
        using var _ = peer;
        peer.Do("go");
        peer.AwaitSteps(100);
        var vm = Assert.Single(handler.GetVms());
        var before = Host.Resources();
        using var cancellation = new CancellationTokenSource();
        var failure = Record.Exception(() => vm.ExportLive(Folder["live"], overwrite: false, new LiveExportOptions
        {
            AtInstant = () =>
            {
                peer.AwaitStandstill();
                if (how == "cancel") cancellation.Cancel();
                else if (how == "kill") KillPeer();
                else if (how == "worker") End(handler.WorkerProcessId, 9);
                else if (how == "stop") vm.Stop(UffdOnError.Poison);
                else throw new InvalidOperationException("as meant");
            },
        }, cancellation.Token));
        switch (how)
        {
            case "cancel":
                Assert.IsAssignableFrom<OperationCanceledException>(failure);
                break;
            case "throw":
                Assert.Equal("as meant", Assert.IsType<InvalidOperationException>(failure).Message);
                break;
            default:
                Assert.True(failure is GuestMemoryException { Error: GuestMemoryError.LiveFailed }, failure?.ToString());
                break;
        }

        Assert.Equal("h.sock image peer", string.Join(' ', Directory.GetFiles(Folder.Path).Select(Path.GetFileName).Order(StringComparer.Ordinal)));
        if (how is "cancel" or "throw" or "worker")
        {
            peer.AwaitSteps(1000);
            vm.ExportLive(Folder["live"], overwrite: false);
            peer.AssertInstant(File.ReadAllBytes(Folder["live"]));
        }
        else
        {
            Host.Until(() => handler.ConnectionCount == 0);
            Assert.Equal(GuestMemoryError.VmNotFound, Assert.Throws<GuestMemoryException>(() => vm.ExportLive(Folder["live"], overwrite: false)).Error);
        }

        Host.AssertNoneLeft(before);

        void KillPeer()
        {
            peer.Kill();
            Host.Until(() => handler.ConnectionCount == 0);
        }
    }

    /// <summary>The disk is full in the middle: an error, no file, and the VM goes on.</summary>
    [CompilerTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void AFullDiskIsAnError(bool process)
    {
        using var disk = SmallDisk.TryMake(Folder["small"], 1 << 20);
        Assert.SkipWhen(disk is null, "needs root, to mount a small tmpfs");
        var (handler, peer) = Begin(UffdStrategy.OnDemand, process);
        using var _ = peer;
        peer.Do("go");
        peer.AwaitSteps(100);
        var error = Assert.Throws<GuestMemoryException>(() => Assert.Single(handler.GetVms()).ExportLive(Path.Combine(Folder["small"], "live"), overwrite: false));
        Assert.Equal(GuestMemoryError.DiskFull, error.Error);
        Assert.Empty(Directory.GetFiles(Folder["small"]));
        peer.AwaitSteps(100);
    }

    /// <summary>The VM is not protected any more while the image's digest is computed.</summary>
    [Fact]
    public void TheDigestIsComputedAfterTheEnd()
    {
        var info = LiveExport.Write(Folder["live"], 4096, overwrite: false, new LiveExportOptions { Digest = true }, static file => new MarkedEnd(file), static () => throw new NotSupportedException(), CancellationToken.None);
        var image = File.ReadAllBytes(Folder["live"]);
        Assert.Equal("end"u8.ToArray(), image[..3]);
        Assert.Equal(Convert.ToHexStringLower(SHA256.HashData(image)), info.Digest);
    }

    [CompilerFact]
    public void OnlyOneAtATime()
    {
        var (handler, peer) = Begin(UffdStrategy.OnDemand, process: true);
        using var _ = peer;
        peer.Do("go");
        peer.AwaitSteps(10);
        var vm = Assert.Single(handler.GetVms());
        vm.ExportLive(Folder["live"], overwrite: false, new LiveExportOptions
        {
            AtInstant = () => Assert.Equal(GuestMemoryError.LiveBusy, Assert.Throws<GuestMemoryException>(() => vm.ExportLive(Folder["other"], overwrite: false)).Error),
        });
        peer.AssertInstant(File.ReadAllBytes(Folder["live"]));
        Assert.False(File.Exists(Folder["other"]));
    }

    [CompilerTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void AHandlerThatDoesNotTrackRefuses(bool process)
    {
        Folder.WriteImage("image", Pages);
        var handler = Start(process, new UffdHandlerOptions { SocketPath = Folder["h.sock"], MemoryPath = Folder["image"] });
        using var peer = _peer = new LivePeer(LivePeer.Compile(Folder["peer"]), handler.SocketPath, Pages);
        Host.Until(() => handler.ConnectionCount == 1);
        Assert.Equal(GuestMemoryError.DirtyTrackingOff, Assert.Throws<GuestMemoryException>(() => Assert.Single(handler.GetVms()).ExportLive(Folder["live"], overwrite: false)).Error);
        Assert.False(File.Exists(Folder["live"]));
    }

    /// <summary>A VM whose VMM is this process: its memory is held all the same, and only stopping is refused.</summary>
    [UffdFact]
    public void AVmOfThisProcessIsExportedAndNotStopped()
    {
        Folder.WriteImage("image", Pages);
        var handler = Start(process: false, Options(UffdStrategy.OnDemand));
        var memory = GuestMemoryMmap.FromRegions([Region(new MmapRegionBuilder(Pages * 4096).WithMemfd())]);
        UffdRegistration.Connect(handler.SocketPath, memory, sharesMemory: true);
        memory.Write(new GuestAddress(4096), [1, 2, 3]);
        var vm = Assert.Single(handler.GetVms());
        Assert.Equal(GuestMemoryError.ValueNotSupported, Assert.Throws<GuestMemoryException>(() => vm.ExportLive(Folder["live"], overwrite: false, new LiveExportOptions { StopsVmm = true })).Error);
        Assert.False(File.Exists(Folder["live"]));
        vm.ExportLive(Folder["live"], overwrite: false, new LiveExportOptions { AtInstant = () => memory.Write(new GuestAddress(4096), [4, 5, 6]) });
        Assert.Equal([1, 2, 3], File.ReadAllBytes(Folder["live"])[4096..4099]);
        var now = new byte[3];
        memory.ReadExact(new GuestAddress(4096), now);
        Assert.Equal([4, 5, 6], now);
    }

    /// <summary>No write waits where the kernel notes writes.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void AVmmThatTracksWritesItselfIsRefused(bool process)
    {
        Folder.WriteImage("image", Pages);
        var handler = Start(process, Options(UffdStrategy.OnDemand));
        var region = Region(new MmapRegionBuilder(Pages * 4096).WithMemfd());
        using var peer = new RawPeer(handler.SocketPath, region, Userfaultfd.UFFD_FEATURE_EVENT_REMOVE | Userfaultfd.UFFD_FEATURE_MISSING_SHMEM | Userfaultfd.UFFD_FEATURE_WP_ASYNC | Userfaultfd.UFFD_FEATURE_WP_UNPOPULATED);
        peer.SendWith(System.Text.Encoding.UTF8.GetString(UffdMappingList.ToJson([new GuestRegionUffdMapping(region.HostAddress, region.Size, 0, 4096)])), region.GetMmapRegion().File!.File);
        Host.Until(() => handler.ConnectionCount == 1);
        var error = Assert.Throws<GuestMemoryException>(() => Assert.Single(handler.GetVms()).ExportLive(Folder["live"], overwrite: false));
        Assert.Equal(GuestMemoryError.LiveUnsupported, error.Error);
        Assert.Contains("WP_ASYNC", error.Message, StringComparison.Ordinal);
    }

    private UffdHandlerOptions Options(UffdStrategy strategy) => new() { SocketPath = Folder["h.sock"], MemoryPath = Folder["image"], Strategy = strategy, TrackDirty = true };

    private (UffdHandler Handler, LivePeer Peer) Begin(UffdStrategy strategy, bool process, params string[] options)
    {
        Folder.WriteImage("image", Pages);
        var handler = Start(process, Options(strategy));
        _peer = new LivePeer(LivePeer.Compile(Folder["peer"]), handler.SocketPath, Pages, options);
        Host.Until(() => handler.ConnectionCount == 1);
        return (handler, _peer);
    }

    /// <summary>The memory of the VM, which stands still.</summary>
    private static byte[] Read(UffdHandler handler)
    {
        var memory = Assert.Single(handler.GetVms()).OpenMemory();
        var all = new byte[Pages * 4096];
        memory.ReadExact(new GuestAddress(0), all);
        foreach (var region in memory.Regions) region.Dispose();
        return all;
    }

    /// <summary>Stands for an export, and writes to the file when it ends.</summary>
    private sealed class MarkedEnd(SafeFileHandle file) : UffdLiveExport
    {
        public override void Protect(CancellationToken cancellation)
        {
        }

        public override void Take()
        {
        }

        public override (ulong Bytes, long Pages) Sweep(Action<ulong>? progress, CancellationToken cancellation) => (0, 0);

        protected override void Dispose(bool disposing) => RandomAccess.Write(file, "end"u8, 0);
    }
}
