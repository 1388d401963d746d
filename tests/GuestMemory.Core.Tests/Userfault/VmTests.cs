using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <summary>The VMs of a handler one by one: which there are, what they are called, and how the service of one ends.</summary>
[Collection(RuntimeFolder.Name)]
public sealed class VmTests(RuntimeFolder runtime) : VmFixture(runtime)
{
    private const int Pages = 64;
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void AVmHasANumberANameAndFigures(bool process)
    {
        var handler = Start(process);
        Assert.Empty(handler.GetVms());
        var (first, second) = (Connect(handler), Connect(handler));
        TestFolder.AssertPages(first, 0, 16);
        TestFolder.AssertPages(second, 0, Pages);
        Host.Until(() => handler.FaultCount == 16 + Pages);
        var vms = handler.GetVms();
        Assert.Equal([(1, "h-1"), (2, "h-2")], vms.Select(static vm => (vm.Id, vm.Name)));
        Assert.All(vms, vm => Assert.Equal((handler, handler.SocketPath, Environment.ProcessId, Pages * 4096UL, UffdStrategy.OnDemand, UffdOnError.Poison, false, null),
            (vm.Handler, vm.SocketPath, vm.ProcessId, vm.MemorySize, vm.Strategy, vm.OnError, vm.CanReadMemory, vm.Error)));
        Assert.Equal([(UffdVmCondition.Serving, 25.0, 16L), (UffdVmCondition.Restored, 100.0, (long)Pages)], vms.Select(static vm => (vm.State, vm.PercentPresent, vm.FaultCount)));
        Assert.Equal("h-1,h-2", string.Join(',', handler.GetFigures().Vms.Select(static vm => vm.VmName)));
        Regions[0].Dispose();
        Host.Until(() => handler.ConnectionCount == 1);
        Assert.Equal([2], handler.GetVms().Select(static vm => vm.Id));
        Connect(handler);
        Host.Until(() => handler.ConnectionCount == 2);
        Assert.Equal([2, 3], handler.GetVms().Select(static vm => vm.Id));
        handler.Stop();
        Assert.Empty(handler.GetVms());
    }

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void AVmIsRenamed(bool process)
    {
        var handler = Start(process);
        Connect(handler);
        Connect(handler);
        Host.Until(() => handler.ConnectionCount == 2);
        var vm = handler.GetVms()[0];
        vm.Rename("web");
        // A picture of its moment.
        Assert.Equal("h-1", vm.Name);
        Assert.Equal("web,h-2", string.Join(',', handler.GetVms().Select(static vm => vm.Name)));
        vm.Rename("Web");
        Assert.Equal("Web,h-2", string.Join(',', handler.GetVms().Select(static vm => vm.Name)));
        Refuses(GuestMemoryError.NameInUse, () => handler.GetVms()[1].Rename("wEB"));
        Refuses(GuestMemoryError.ValueNotSupported, () => vm.Rename("w b"));
        Refuses(GuestMemoryError.ValueNotSupported, () => vm.Rename("2"));
        Assert.Equal("Web,h-2", string.Join(',', handler.GetVms().Select(static vm => vm.Name)));
        vm.Rename(new string('w', 64));
        Assert.Equal(new string('w', 64), handler.GetVms()[0].Name);
        vm.SetOnError(UffdOnError.Kill);
        Assert.Equal([UffdOnError.Kill, UffdOnError.Poison], handler.GetVms().Select(static vm => vm.OnError));
        Regions[0].Dispose();
        Host.Until(() => handler.ConnectionCount == 1);
        Refuses(GuestMemoryError.VmNotFound, () => vm.Rename("db"));
        Refuses(GuestMemoryError.VmNotFound, () => vm.SetOnError(UffdOnError.Poison));
        Refuses(GuestMemoryError.VmNotFound, () => vm.Stop());
    }

    /// <summary>What touches a missing page gets an error, what was given back is zero, what is there stays, and no other VM is concerned.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void AVmThatIsStoppedNeverWaits(bool process)
    {
        var handler = Start(process);
        var (first, second) = (Connect(handler), Connect(handler));
        TestFolder.AssertPages(first, 0, 16);
        TestFolder.AssertPages(second, 0, 16);
        Regions[0].GetMmapRegion().Discard(3 * 4096, 4096);
        Regions[0].GetMmapRegion().Discard(40 * 4096, 4096);
        handler.GetVms()[0].Stop(UffdOnError.Poison);
        Assert.Equal([2], handler.GetVms().Select(static vm => vm.Id));
        Assert.Null(handler.Error);
        TestFolder.AssertPages(first, 8, 8);
        foreach (var page in new[] { 3, 40 })
        {
            var bytes = new byte[4096];
            Read(first, page, bytes);
            Assert.True(bytes.AsSpan().IndexOfAnyExcept((byte)0) < 0);
        }

        Refuses(GuestMemoryError.PageNotAccessible, () => Read(first, 20, new byte[8]));
        // A removal waits for no handler.
        Regions[0].GetMmapRegion().Discard(10 * 4096, 4096);
        TestFolder.AssertPages(second, 0, Pages);
    }

    /// <summary>The order is a VM's, whichever process serves it: a worker that cannot follow it, or dies of it, has a successor.</summary>
    [UffdFact]
    public void AVmIsStoppedAlsoWhereItsWorkerDies()
    {
        var handler = Start(process: true);
        var (first, second) = (Connect(handler), Connect(handler));
        TestFolder.AssertPages(first, 0, 16);
        TestFolder.AssertPages(second, 0, 16);
        var worker = handler.WorkerProcessId;
        Assert.True(Signal(worker, 19));
        var stopping = Task.Run(() => handler.GetVms()[0].Stop());
        Host.Until(() => File.ReadAllText(UffdRuntimeFolder.LogOf(UffdRuntimeFolder.SocketOf(Runtime.Folder.Path, handler.ProcessId))).Contains("is stopped as ordered (Poison)", StringComparison.Ordinal));
        Assert.True(Signal(worker, 9));
        Assert.True(stopping.Wait(Host.Patience));
        Assert.Equal([2], handler.GetVms().Select(static vm => vm.Id));
        Refuses(GuestMemoryError.PageNotAccessible, () => Read(first, 20, new byte[8]));
        TestFolder.AssertPages(second, 0, Pages);
    }

    /// <summary>Its VMM goes on with the others that came over its connection.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void TheOthersOfItsConnectionGoOn(bool process)
    {
        var handler = Start(process);
        var (first, second) = (Region(), Region());
        using var peer = new RawPeer(handler.SocketPath, first);
        using var other = new RawPeer(handler.SocketPath, second, connect: false);
        peer.SendDescriptor(peer.Descriptor, List(first));
        peer.SendDescriptor(other.Descriptor, List(second));
        Host.Until(() => handler.ConnectionCount == 2);
        handler.GetVms()[0].Stop(UffdOnError.Poison);
        TestFolder.AssertPages(GuestMemoryMmap.FromRegions([second]), 0, Pages);
        Assert.Equal((1, false), (handler.ConnectionCount, peer.IsHungUp));
        handler.GetVms()[0].Stop(UffdOnError.Poison);
        Host.Until(() => peer.IsHungUp);
        Assert.Equal((0, null), (handler.ConnectionCount, handler.Error));
    }

    [CompilerTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void TheVmmIsKilled(bool process)
    {
        var handler = Start(process);
        Connect(handler);
        Host.Until(() => handler.ConnectionCount == 1);
        using var vmm = Vmm(handler);
        var vm = handler.GetVms().Single(vm => vm.ProcessId == vmm.Id);
        Refuses(GuestMemoryError.ValueNotSupported, () => vm.Stop(UffdOnError.Stop));
        vm.SetOnError(UffdOnError.Kill);
        handler.GetVms().Single(vm => vm.ProcessId == vmm.Id).Stop();
        Assert.True(vmm.WaitForExit(Host.Patience));
        Assert.Equal(128 + 9, vmm.ExitCode);
        Assert.Equal((1, null), (Assert.Single(handler.GetVms()).Id, handler.Error));
    }

    /// <summary>What follows on an error is by VM, also for the next worker.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void OnErrorIsOfOneVm(bool process)
    {
        var handler = Start(process, onError: UffdOnError.Stop);
        var (first, second) = (Connect(handler), Connect(handler));
        Assert.Equal([UffdOnError.Stop, UffdOnError.Stop], handler.GetVms().Select(static vm => vm.OnError));
        handler.GetVms()[0].SetOnError(UffdOnError.Poison);
        if (process)
        {
            TestFolder.AssertPages(first, 0, 1);
            Assert.True(Signal(handler.WorkerProcessId, 9));
            TestFolder.AssertPages(first, 1, 1);
            TestFolder.AssertPages(second, 1, 1);
            Assert.Equal(UffdOnError.Poison, handler.GetVms()[0].OnError);
        }

        Assert.Equal(0, Compiler.Run("truncate", "-s", "65536", Folder["image"]).Code);
        Refuses(GuestMemoryError.PageNotAccessible, () => Read(first, 40, new byte[8]));
        Assert.Equal(2, handler.ConnectionCount);
        Refuses(GuestMemoryError.HandlerGone, () => Read(second, 40, new byte[8]));
        Assert.True(handler.Wait(Host.Patience));
        Assert.Equal(UffdHandlerState.Failed, handler.State);
    }

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void MarksAreTakenOfOneVm(bool process)
    {
        var handler = Start(process, trackDirty: true);
        var (first, second) = (Connect(handler), Connect(handler));
        first.Write(new GuestAddress(5 * 4096), [1]);
        second.Write(new GuestAddress(6 * 4096), [1]);
        var (one, two) = (handler.GetVms()[0], handler.GetVms()[1]);
        Assert.Equal([5], Dirty(one, clear: true));
        Assert.Empty(Dirty(one, clear: false));
        Assert.Equal([6], Dirty(two, clear: false));
        first.Write(new GuestAddress(7 * 4096), [1]);
        Assert.Equal([[7], [6]], handler.GetDirtyBitmaps(clear: true).Select(PagesOf));
        Assert.Empty(Dirty(one, clear: true).Concat(Dirty(two, clear: true)));
        Regions[0].Dispose();
        Host.Until(() => handler.ConnectionCount == 1);
        Refuses(GuestMemoryError.VmNotFound, () => one.GetDirtyBitmaps());
    }

    /// <summary>An answer that was confirmed is of its VMs alone: what was taken of another, and has not arrived, is told again.</summary>
    [UffdFact]
    public void AnAnswerIsConfirmedForItsOwnVms()
    {
        var handler = Start(process: true, trackDirty: true);
        var (first, second) = (Connect(handler), Connect(handler));
        first.Write(new GuestAddress(5 * 4096), [1]);
        second.Write(new GuestAddress(6 * 4096), [1]);
        var (one, two) = (handler.GetVms()[0], handler.GetVms()[1]);
        using (var client = UffdControlClient.TryConnect(UffdRuntimeFolder.SocketOf(Runtime.Folder.Path, handler.ProcessId), out _)!)
        {
            using var file = client.AskForFile(new UffdControlRequest { Request = UffdControlRequest.Dirty, Vm = one.Id, Clear = true }, CancellationToken.None, out _)!;
            Assert.Equal([5], PagesOf(Assert.Single(WrittenPages.FromFile(file))));
        }

        Assert.Equal([6], Dirty(two, clear: true));
        Assert.Equal([5], Dirty(one, clear: true));
        Assert.Empty(Dirty(one, clear: true).Concat(Dirty(two, clear: true)));
    }

    [Fact]
    public void MetricsNameTheirVm()
    {
        var counters = new UffdCounters { Copied = 3 };
        var vm = UffdFigures.Of(17, ref counters, new LatencyHistogram(), (10, 5, 0), null) with { VmName = "a\"b\\c\nd", Image = "web" };
        var text = UffdFiguresText.ToOpenMetrics([vm with { SocketPath = "/run/h.sock", ProcessId = 0, VmName = null, Vms = [vm] }]);
        Assert.Contains("guestmemory_uffd_present_ratio{socket=\"/run/h.sock\",image=\"web\",vm=\"a\\\"b\\\\c\\nd\",pid=\"17\"} 0.5\n", text, StringComparison.Ordinal);
        Assert.Contains("guestmemory_uffd_vm_faults_total{socket=\"/run/h.sock\",image=\"web\",vm=\"a\\\"b\\\\c\\nd\",pid=\"17\"} 3\n", text, StringComparison.Ordinal);
        Assert.EndsWith("# EOF\n", text, StringComparison.Ordinal);
    }

    [UffdFact]
    public void RequestsThatMakeNoSenseAreRefused()
    {
        var handler = Start(process: true);
        Connect(handler);
        Host.Until(() => handler.ConnectionCount == 1);
        using var client = UffdControlClient.TryConnect(UffdRuntimeFolder.SocketOf(Runtime.Folder.Path, handler.ProcessId), out _)!;
        foreach (var (request, error) in new[]
        {
            (new UffdControlRequest { Request = "set-vm", Vm = 7, Name = "a" }, GuestMemoryError.VmNotFound),
            (new UffdControlRequest { Request = "set-vm", Vm = -1, Name = "a" }, GuestMemoryError.VmNotFound),
            (new UffdControlRequest { Request = "set-vm", Vm = 1, Name = new string('a', 100_000) }, GuestMemoryError.ValueNotSupported),
            (new UffdControlRequest { Request = "set-vm", Vm = 1, Name = "a\nb" }, GuestMemoryError.ValueNotSupported),
            (new UffdControlRequest { Request = "stop-vm", Vm = 1 }, GuestMemoryError.ValueNotSupported),
            (new UffdControlRequest { Request = "stop-vm", Vm = 1, OnError = UffdOnError.Stop }, GuestMemoryError.ValueNotSupported),
            (new UffdControlRequest { Request = "stop-vm", Vm = 0, OnError = UffdOnError.Kill }, GuestMemoryError.VmNotFound),
            (new UffdControlRequest { Request = "dirty", Vm = 1 }, GuestMemoryError.DirtyTrackingOff),
            (new UffdControlRequest { Request = "part", Vm = 1 }, GuestMemoryError.ControlFailed),
            (new UffdControlRequest { Request = "part", Vm = 1, WhichPart = "uffd" }, GuestMemoryError.ControlFailed),
            (new UffdControlRequest { Request = "part", Vm = 1, WhichPart = "memory" }, GuestMemoryError.MemoryNotShared),
            (new UffdControlRequest { Request = "part", Vm = 1, WhichPart = "image", Number = 1 }, GuestMemoryError.ControlFailed),
            (new UffdControlRequest { Request = "part", Vm = 1, WhichPart = "image", Number = -1 }, GuestMemoryError.ControlFailed),
        })
        {
            Refuses(error, () => client.Ask(request, CancellationToken.None));
        }

        Assert.Equal("h-1", string.Join(',', handler.GetVms().Select(static vm => vm.Name)));
        TestFolder.AssertPages(GuestMemoryMmap.FromRegions(Regions), 0, Pages);
    }

    private static void Refuses(GuestMemoryError error, Action action) => Assert.Equal(error, Assert.Throws<GuestMemoryException>(action).Error);

    private static void Read(GuestMemoryMmap memory, int page, byte[] bytes)
    {
        using var limit = new CancellationTokenSource(Host.Patience);
        memory.ReadExact(new GuestAddress((ulong)page * 4096), bytes.AsMemory(), limit.Token);
    }

    private static long[] Dirty(UffdServedVm vm, bool clear) => PagesOf(Assert.Single(vm.GetDirtyBitmaps(clear)));

    private static long[] PagesOf(DirtyBitmap bitmap)
    {
        var pages = new long[bitmap.PageCount];
        return pages[..bitmap.ListPages(pages)];
    }

    private static string List(GuestRegionMmap region) => System.Text.Encoding.UTF8.GetString(UffdMappingList.ToJson([new GuestRegionUffdMapping(region.HostAddress, region.Size, 0, 4096)]));

    /// <summary>Another process, whose memory has come and that stays.</summary>
    private Process Vmm(UffdHandler handler)
    {
        var client = Compiler.Compile(Path.Combine(AppContext.BaseDirectory, "Userfault", "uffd-client.c"), Folder["client"]);
        var vmm = Process.Start(new ProcessStartInfo(client, [handler.SocketPath, "1", "--image", Folder["image"], "--stay"]) { UseShellExecute = false, RedirectStandardOutput = true })!;
        Assert.Contains("\"bad\":0}", vmm.StandardOutput.ReadLine(), StringComparison.Ordinal);
        Host.Until(() => handler.GetVms().Any(vm => vm.ProcessId == vmm.Id));
        return vmm;
    }

    private UffdHandler Start(bool process, bool trackDirty = false, UffdOnError onError = UffdOnError.Poison)
    {
        Folder.WriteImage("image", 256);
        var options = new UffdHandlerOptions
        {
            SocketPath = Folder["h.sock"], MemoryPath = Folder["image"], Strategy = UffdStrategy.OnDemand, TrackDirty = trackDirty, OnError = onError, SourceTimeout = TimeSpan.FromMilliseconds(200),
        };
        return Start(process, options);
    }

    private GuestMemoryMmap Connect(UffdHandler handler)
    {
        var count = handler.TotalConnectionCount;
        var memory = GuestMemoryMmap.FromRegions([Region()]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        Host.Until(() => handler.TotalConnectionCount > count);
        return memory;
    }

    private GuestRegionMmap Region() => Region(new MmapRegionBuilder(Pages * 4096));
}
