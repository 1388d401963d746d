using System.Security.Cryptography;

namespace GuestMemory.Core.Tests;

/// <summary>The memory of a VM of this process, written to a file as it is at one instant while its vCPUs write and give back pages of it (live-guest.c).</summary>
public sealed class LiveGuestTests : IDisposable
{
    private const int Pages = 1024;
    private static readonly int s_rounds = Setting("GUESTMEMORY_LIVE_ROUNDS", 50);

    private TestFolder Folder { get; } = new();

    public void Dispose() => Folder.Dispose();

    [LiveGuestTheory]
    [InlineData(false, false)]
    [InlineData(false, true)]
    [InlineData(true, false)]
    [InlineData(true, true)]
    public void TheImageIsTheMemoryOfOneInstant(bool isShared, bool stops)
    {
        using var guest = new LiveGuest(Folder, Pages, isShared);
        guest.Go();
        guest.AwaitSteps(100);
        var before = new ulong[2];
        for (var round = 0; round < s_rounds; round++)
        {
            var info = guest.Vm.ExportLive(Folder["live"], overwrite: true, new LiveExportOptions { StopsVmm = stops });
            Assert.Equal((Folder["live"], ImageFormat.Raw, guest.Memory.Size), (info.Path, info.Format, info.Size));
            before = guest.AssertInstant(File.ReadAllBytes(Folder["live"]));
            if (round % 10 == 0) guest.AwaitSteps(100);
        }

        // It goes on, and nothing of it was harmed.
        guest.AwaitSteps(1000);
        using (guest.Vm.Pause())
        {
            var steps = guest.Steps();
            Assert.True(steps[0] > before[0] && steps[1] > before[1]);
            Assert.Equal(steps, guest.AssertInstant(guest.Read()));
        }
    }

    /// <summary>While the VM is paused nothing changes, and the image is what it has then; also where a vCPU is made and run meanwhile.</summary>
    [LiveGuestFact]
    public void TheImageIsWhatTheVmHasWhileItIsPaused()
    {
        using var guest = new LiveGuest(Folder, Pages) { KeepsPages = true };
        guest.Go(0);
        for (var round = 0; round < 10; round++)
        {
            var first = guest.Steps()[0];
            Host.Until(() => guest.Steps()[0] > first + 50);
            byte[] stopped = [];
            var info = guest.Vm.ExportLive(Folder["live"], overwrite: true, new LiveExportOptions
            {
                StopsVmm = true,
                Digest = true,
                AtInstant = () =>
                {
                    if (round == 5) guest.Go(1);
                    stopped = guest.Read();
                    Thread.Sleep(5);
                    Assert.Equal(stopped, guest.Read());
                },
            });
            Assert.Equal(stopped, File.ReadAllBytes(Folder["live"]));
            Assert.Equal(Convert.ToHexStringLower(SHA256.HashData(stopped)), info.Digest);
        }

        guest.AwaitSteps(100);
    }

    /// <summary>Threads of this process write, atomically and otherwise, while pages are protected and garbage is collected: nobody waits for ever, and their writes are of one instant too.</summary>
    [LiveGuestFact]
    public void WritersOfThisProcessAreHeldAndGoOn()
    {
        using var guest = new LiveGuest(Folder, Pages);
        guest.Go();
        using var over = new CancellationTokenSource();
        ulong done = 0;
        var buffer = new byte[8192];
        Thread[] threads =
        [
            new(() =>
            {
                for (ulong i = 1; !over.IsCancellationRequested; i++)
                {
                    guest.Memory.WriteObject(new GuestAddress(0x80000), i);
                    guest.Memory.Store(new GuestAddress(0x90000), i, AtomicOrdering.SeqCst);
                    guest.Memory.WriteExact(new GuestAddress(0xA0FF8), BitConverter.GetBytes(i).Concat(BitConverter.GetBytes(i)).ToArray());
                    Volatile.Write(ref done, i);
                }
            }),
            new(() =>
            {
                for (; !over.IsCancellationRequested; Thread.Sleep(1)) GC.Collect();
            }),
        ];
        foreach (var thread in threads) thread.Start();
        try
        {
            for (var round = 0; round < s_rounds / 5; round++)
            {
                guest.Vm.ExportLive(Folder["live"], overwrite: true);
                var image = File.ReadAllBytes(Folder["live"]);
                guest.AssertInstant(image);
                var (first, second, third) = (BitConverter.ToUInt64(image, 0x80000), BitConverter.ToUInt64(image, 0x90000), BitConverter.ToUInt64(image, 0xA0FF8));
                Assert.True(first - second <= 1 && second - third <= 1 && first - third <= 1, $"{first} {second} {third}");
                var before = Volatile.Read(ref done);
                Host.Until(() => Volatile.Read(ref done) > before + 10);
            }
        }
        finally
        {
            over.Cancel();
            foreach (var thread in threads) Assert.True(thread.Join(Host.Patience));
        }
    }

    /// <summary>A large range that is given back after the instant is in the image as it was.</summary>
    [LiveGuestTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void WhatIsGivenBackIsCopiedFirst(bool isShared)
    {
        using var guest = new LiveGuest(Folder, Pages, isShared);
        var before = guest.Read();
        guest.Vm.ExportLive(Folder["live"], overwrite: false, new LiveExportOptions
        {
            AtInstant = () =>
            {
                guest.Vm.HandleBalloonEvent(BalloonEvent.Inflate(new GuestAddress(0x1000000), 512 * 4096));
                guest.Memory.WriteExact(new GuestAddress(0x1000000 + (700 * 4096)), new byte[100 * 4096]);
            },
        });
        Assert.Equal(before, File.ReadAllBytes(Folder["live"]));
        Assert.False(guest.Read().AsSpan().SequenceEqual(before));
        // Between the protection and the instant a page that comes again after it was given back is not protected any more.
        guest.Vm.ExportLive(Folder["live"], overwrite: true);
        Assert.Equal(guest.Read(), File.ReadAllBytes(Folder["live"]));
    }

    [LiveGuestTheory]
    [InlineData("cancel")]
    [InlineData("throw")]
    [InlineData("remove")]
    [InlineData("release")]
    public void AnExportThatEndsEarlyLeavesNothingBehind(string how)
    {
        using var guest = new LiveGuest(Folder, Pages);
        guest.Go();
        guest.AwaitSteps(100);
        var before = Host.Resources();
        var threads = Host.Threads("live-export");
        using var cancellation = new CancellationTokenSource();
        var failure = Record.Exception(() => guest.Vm.ExportLive(Folder["live"], overwrite: false, new LiveExportOptions
        {
            StopsVmm = true,
            AtInstant = () =>
            {
                if (how == "cancel") cancellation.Cancel();
                else if (how == "throw") throw new InvalidOperationException("as meant");
                else if (how == "remove") guest.Vm.Dispose();
                else ((GuestRegionMmap)guest.Memory.Regions[1]).GetMmapRegion().Release(force: true);
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
            case "remove":
                // The memory stays, and what it has.
                Assert.Null(failure);
                guest.AssertInstant(File.ReadAllBytes(Folder["live"]));
                break;
            default:
                Assert.True(failure is GuestMemoryException { Error: GuestMemoryError.LiveFailed }, failure?.ToString());
                break;
        }

        Assert.Equal(how == "remove" ? "guest live" : "guest", string.Join(' ', Directory.GetFiles(Folder.Path).Select(Path.GetFileName).Order(StringComparer.Ordinal)));
        if (how is "cancel" or "throw")
        {
            guest.AwaitSteps(1000);
            guest.Vm.ExportLive(Folder["live"], overwrite: false);
            guest.AssertInstant(File.ReadAllBytes(Folder["live"]));
        }

        Host.AssertNoneLeft(before);
        Host.Until(() => Host.Threads("live-export") <= threads);
    }

    /// <summary>A region may be released while the export ends, which has closed its userfaultfd already.</summary>
    [LiveGuestFact]
    public void ARegionIsReleasedAlsoAfterTheEnd()
    {
        using var guest = new LiveGuest(Folder, Pages);
        using var file = File.OpenHandle(Folder["live"], FileMode.CreateNew, FileAccess.ReadWrite);
        var export = new LocalMemoryExport(guest.Vm, file, CancellationToken.None);
        export.Dispose();
        Assert.Null(Record.Exception(() => ((IRegionHolder)export).Release(guest.Memory.Regions[1].GetMmapRegion())));
    }

    /// <summary>The disk is full, for who copies all or for who answers a write: an error that says so, no file, and the VM goes on.</summary>
    [LiveGuestTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void AFullDiskIsAnError(bool isWritten)
    {
        using var disk = SmallDisk.TryMake(Folder["disk"], 1 << 20);
        Assert.SkipWhen(disk is null, "needs root, to mount a small tmpfs");
        using var guest = new LiveGuest(Folder, Pages);
        var options = new LiveExportOptions
        {
            AtInstant = () =>
            {
                if (isWritten) guest.Memory.WriteExact(new GuestAddress(0x1000000), new byte[Pages * 4096]);
            },
        };
        Assert.Equal(GuestMemoryError.DiskFull, Assert.Throws<GuestMemoryException>(() => guest.Vm.ExportLive(Path.Combine(Folder["disk"], "live"), overwrite: false, options)).Error);
        Assert.Empty(Directory.GetFiles(Folder["disk"]));
        guest.Vm.ExportLive(Folder["live"], overwrite: false);
        Assert.Equal(guest.Read(), File.ReadAllBytes(Folder["live"]));
    }

    [LiveGuestFact]
    public void OnlyOneAtATimeAndNoSpanMeanwhile()
    {
        using var guest = new LiveGuest(Folder, Pages);
        var region = guest.Memory.Regions[1].GetMmapRegion();
        using (region.AlignedAsMut<ulong>(0))
        {
            Assert.Equal(GuestMemoryError.RegionInUse, Assert.Throws<GuestMemoryException>(() => guest.Vm.ExportLive(Folder["live"], overwrite: false)).Error);
        }

        Assert.False(region.IsGuarded);
        guest.Vm.ExportLive(Folder["live"], overwrite: false, new LiveExportOptions
        {
            AtInstant = () =>
            {
                Assert.Equal(GuestMemoryError.LiveBusy, Assert.Throws<GuestMemoryException>(() => guest.Vm.ExportLive(Folder["other"], overwrite: false)).Error);
                Assert.True(region.IsGuarded);
                Assert.Equal(GuestMemoryError.RegionInUse, Assert.Throws<GuestMemoryException>(() => region.Release(force: false)).Error);
            },
        });
        Assert.False(region.IsGuarded);
        Assert.Equal(guest.Read(), File.ReadAllBytes(Folder["live"]));
        Assert.False(File.Exists(Folder["other"]));
        guest.Vm.Dispose();
        Assert.Equal(GuestMemoryError.VmDisposed, Assert.Throws<GuestMemoryException>(() => guest.Vm.ExportLive(Folder["other"], overwrite: false)).Error);
    }

    [LiveGuestTheory]
    [InlineData("file", "a file")]
    [InlineData("private", "a file")]
    [InlineData("pointer", "caller mapped")]
    [InlineData("served", "page-fault handler")]
    [InlineData("slot", "once more")]
    public unsafe void MemoryThatCannotBeHeldIsRefused(string what, string reason)
    {
        Folder.WriteImage("image", 16);
        using var owner = new MmapRegionBuilder(16 * 4096).Build();
        var builder = new MmapRegionBuilder(16 * 4096);
        using var region = new GuestRegionMmap(what switch
        {
            "file" => builder.WithFile(Folder["image"]).Build(),
            "private" => builder.WithFile(Folder["image"]).WithFlags(MapFlags.Private).Build(),
            "pointer" => builder.WithRawPointer((nint)owner.HostAddress).Build(),
            _ => builder.Build(),
        }, new GuestAddress(0), "ram");
        var memory = GuestMemoryMmap.FromRegions([region]);
        using var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = Folder["h.sock"], MemoryPath = Folder["image"] });
        if (what == "served") UffdRegistration.Connect(handler.SocketPath, memory);
        using var vm = new KvmVm(memory);
        if (what == "slot")
        {
            var mapping = SlotMapping.External((nint)region.HostAddress + (15 * 4096), 4096, region.GetMmapRegion());
            vm.AddMemoryRegion(new GuestAddress(0x1_0000_0000), mapping, readOnly: false, logDirtyPages: false, MemCacheType.CacheCoherent);
        }

        var error = Assert.Throws<GuestMemoryException>(() => vm.ExportLive(Folder["live"], overwrite: false));
        Assert.Equal(GuestMemoryError.LiveUnsupported, error.Error);
        Assert.Contains(reason, error.Message, StringComparison.Ordinal);
        Assert.False(File.Exists(Folder["live"]));
    }

    /// <summary>A dirty log goes on, and a full ring does not stand in the way of a pause.</summary>
    [LiveGuestFact]
    public void ADirtyRingGoesOn()
    {
        using var guest = new LiveGuest(Folder, Pages, options: new KvmVmOptions { LogDirtyPages = true, DirtyLog = DirtyLogMode.Ring, DirtyRingEntries = 1024 });
        guest.Go();
        for (var round = 0; round < 10; round++)
        {
            guest.AwaitSteps(100);
            guest.Vm.ExportLive(Folder["live"], overwrite: true, new LiveExportOptions { StopsVmm = true });
            guest.AssertInstant(File.ReadAllBytes(Folder["live"]));
        }

        Assert.True(guest.Vm.GetDirtyBitmap(1).DirtyCount > 0);
    }
}
