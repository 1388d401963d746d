using System.Runtime.InteropServices;
using System.Text.Json;

namespace GuestMemory.Core.Tests;

/// <summary>What a GuestVm brings: addresses, services that end with it, and the texts of holders and datamatches.</summary>
public sealed class GuestVmTests : IDisposable
{
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("gm-");

    public void Dispose() => _folder.Delete(recursive: true);

    [Theory]
    [InlineData("PciBar:00:1f.7/5")]
    [InlineData("PciBridgeWindow:ff:02.0")]
    [InlineData("PciBridgePrefetchWindow:01:02.3")]
    [InlineData("Anon:18446744073709551615")]
    [InlineData("PmemDevice:1")]
    [InlineData("FileBacked:7")]
    [InlineData("GpuRenderNode")]
    [InlineData("Pstore")]
    public void HoldersAreReadAsTheyAreWritten(string text)
    {
        Assert.Equal(text, Alloc.Parse(text).ToString());
        Assert.Equal(Alloc.Parse(text), Alloc.Parse(text.ToUpperInvariant()));
    }

    [Theory]
    [InlineData("")]
    [InlineData("PciBar")]
    [InlineData("PciBar:00:20.0/0")]
    [InlineData("PciBar:00:03.8/0")]
    [InlineData("PciBar:00:03.0/6")]
    [InlineData("PciBar:00:03.0")]
    [InlineData("PciBridgeWindow:00:03.0/1")]
    [InlineData("PciBar:100:03.0/0")]
    [InlineData("Anon:-1")]
    [InlineData("Anon:18446744073709551616")]
    [InlineData("Pstore:1")]
    [InlineData("Bar:1")]
    public void WrongHoldersAreRefused(string text) => Assert.Throws<FormatException>(() => Alloc.Parse(text));

    [Theory]
    [InlineData("AnyLength")]
    [InlineData("U8")]
    [InlineData("U8:0xff")]
    [InlineData("U16:0xffff")]
    [InlineData("U32:0xdeadbeef")]
    [InlineData("U64:0xffffffffffffffff")]
    public void DatamatchesAreReadAsTheyAreWritten(string text) => Assert.Equal(text, Datamatch.Parse(text).ToString());

    [Theory]
    [InlineData("")]
    [InlineData("U8:256")]
    [InlineData("U16:0x10000")]
    [InlineData("U32:")]
    [InlineData("U24")]
    [InlineData("AnyLength:1")]
    [InlineData("U8:-1")]
    public void WrongDatamatchesAreRefused(string text) => Assert.Throws<FormatException>(() => Datamatch.Parse(text));

    [Fact]
    public void DefaultAddressesLeaveTheMemoryAlone()
    {
        using var low = Region(0xd0000000, 0x1000);
        using var high = Region(0x100000000, 0x1000);
        var allocator = SystemAllocator.ForMemory(GuestMemoryMmap.FromRegions([low, high]));
        Assert.Equal([new AddressInterval(0xc0000000, 0xcfffffff), new AddressInterval(0xd0001000, 0xfebfffff), new AddressInterval(0x140000000, 0x113fffffff)], allocator.MmioPools);
        Assert.Equal(0xc0000000u, allocator.AllocateMmio(0x1000, new Alloc.Anon(1), ""));
        Assert.Equal(5u, allocator.AllocateIrq());
        Assert.Equal(0xc000u, allocator.Io.Allocate(4, new Alloc.Anon(2), ""));
    }

    [Fact]
    public void DefaultAddressesOfMemoryAtTheEnd()
    {
        using var last = Region(0xffffffffffffe000, 0x1000);
        foreach (var pool in SystemAllocator.ForMemory(GuestMemoryMmap.FromRegions([last])).MmioPools) Assert.True(pool.End < 0xffffffffffffe000);
        Assert.Equal(0x100000000u, SystemAllocator.ForMemory(GuestMemoryMmap.Empty).HighMmio.Pools[0].Start);
    }

    [KvmFact]
    public void ServicesEndWithTheirVm()
    {
        using var region = Region(0, 0x10000);
        using var vm = new GuestVm(new KvmVm(GuestMemoryMmap.FromRegions([region])));
        var path = Path.Combine(_folder.FullName, "vm.sock");
        var service = vm.StartService(new VmMemoryServiceOptions { SocketPath = path });
        var stopped = vm.StartService(new VmMemoryServiceOptions());
        stopped.Stop();
        Assert.Equal([service], vm.GetServices());
        using var client = VmMemoryClient.Connect(path);
        client.BalloonTargetReached(1);
        vm.Dispose();
        Assert.Equal(VmMemoryServiceState.Stopped, service.State);
        Assert.False(File.Exists(path));
        Assert.Equal(GuestMemoryError.Disconnected, Assert.Throws<GuestMemoryException>(() => client.BalloonTargetReached(1)).Error);
        Assert.Equal(GuestMemoryError.VmDisposed, Assert.Throws<GuestMemoryException>(() => vm.StartService(new VmMemoryServiceOptions())).Error);
        Assert.Equal(GuestMemoryError.VmDisposed, Assert.Throws<GuestMemoryException>(() => vm.Execute(new VmMemoryRequest.BalloonTargetReached(1))).Error);
    }

    [KvmFact]
    public void ARequestThatWaitsForAnotherOneCanBeLeft()
    {
        using var region = Region(0, 0x10000);
        using var vm = new GuestVm(new KvmVm(GuestMemoryMmap.FromRegions([region])));
        using var stop = new CancellationTokenSource();
        Exception? failure = null;
        // A thread of its own: who holds the lock may execute.
        var other = new Thread(() => failure = Record.Exception(() => vm.Execute(new VmMemoryRequest.BalloonTargetReached(1), stop.Token)));
        lock (vm.GetContext().Lock)
        {
            other.Start();
            stop.CancelAfter(50);
            Assert.True(other.Join(Host.Patience));
        }

        Assert.IsAssignableFrom<OperationCanceledException>(failure);

        Assert.IsType<VmMemoryResponse.Ok>(vm.Execute(new VmMemoryRequest.BalloonTargetReached(1)));
    }

    /// <summary>The guest must never reach memory that became others': a region that is removed stays mapped for it.</summary>
    [KvmFact]
    public void MemoryOfARegionOutlivesTheRegion()
    {
        using var region = Region(0, 0x10000);
        using var vm = new GuestVm(new KvmVm(GuestMemoryMmap.FromRegions([region])));
        var lent = Region(0x100000, 0x10000);
        lent.GetMmapRegion().AsVolatileSlice().Write(0, [42]);
        var source = new VmMemorySource.ExternalMapping(lent.HostAddress, 0x10000) { Owner = lent.GetMmapRegion() };
        var request = new VmMemoryRequest.RegisterMemory(source, new VmMemoryDestination.GuestPhysicalAddress(0x100000), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent);
        var answer = Assert.IsType<VmMemoryResponse.RegisterMemory>(vm.Execute(request));
        lent.Dispose();
        var memory = vm.Slots.Single(slot => slot.Slot == answer.Slot).GetSlotMemory()!;
        var read = new byte[1];
        Assert.Equal(1, memory.Memory.TryRead(0, read, out _));
        Assert.Equal(42, read[0]);
        Assert.Equal("gralloc mapping", Assert.IsType<VmMemoryResponse.Err>(vm.Execute(request)).Outermost);
        Assert.IsType<VmMemoryResponse.Ok>(vm.Execute(new VmMemoryRequest.UnregisterMemory(answer.RegionId)));
    }

    [Fact]
    public void ExternalMemoryLiesInItsRegion()
    {
        using var region = Region(0, 0x2000);
        foreach (var (start, size) in new[] { (region.HostAddress - 0x1000, 0x1000UL), (region.HostAddress, 0x3000UL), (region.HostAddress + 0x2000, 0x1000UL) })
        {
            var exception = Assert.Throws<GuestMemoryException>(() => SlotMapping.External((nint)start, size, region.GetMmapRegion()));
            Assert.Equal(GuestMemoryError.InvalidAddress, exception.Error);
        }
    }

    [Fact]
    public void AnErrorsLayersAreInnerExceptions()
    {
        var exception = new VmMemoryResponse.Err(["root", "middle", "outer"]).ToException();
        Assert.Equal(GuestMemoryError.RequestFailed, exception.Error);
        Assert.Equal("outer: middle: root", exception.Message);
        Assert.Equal("middle", exception.InnerException!.Message);
        Assert.Equal("root", exception.InnerException.InnerException!.Message);
        Assert.Null(new VmMemoryResponse.Err(["root"]).ToException().InnerException);
        // To show these by recursion would take more stack than there is.
        var layers = 0;
        for (Exception? layer = new VmMemoryResponse.Err([.. Enumerable.Repeat("layer", 300_000)]).ToException(); layer is not null; layer = layer.InnerException) layers++;
        Assert.Equal(33, layers);
    }

    /// <summary>Who listens and accepts nobody, and who accepts and takes nothing.</summary>
    [Fact]
    public void WaitingForRoomIsLimitedAndCanBeCancelled()
    {
        var path = Path.Combine(_folder.FullName, "busy.sock");
        using var socket = UnixSocket.Create(nonBlocking: false, type: UnixSocket.SOCK_SEQPACKET);
        Assert.Equal(0, UnixSocket.TryBind(socket, path));
        Assert.Equal(0, UnixSocket.TryListen(socket, 0));
        using var stop = new CancellationTokenSource();
        using var first = Tube.Connect(path, TimeSpan.FromMilliseconds(100), stop.Token);
        Assert.Equal(GuestMemoryError.TubeTimeout, Assert.Throws<GuestMemoryException>(() => Tube.Connect(path, TimeSpan.FromMilliseconds(100), stop.Token)).Error);
        Assert.Equal(GuestMemoryError.TubeTimeout, Assert.ThrowsAny<GuestMemoryException>(() => Fill(first, stop.Token)).Error);
        stop.CancelAfter(50);
        Assert.ThrowsAny<OperationCanceledException>(() => Tube.Connect(path, null, stop.Token));
        using var again = new CancellationTokenSource(50);
        first.SetSendTimeout(null);
        Assert.ThrowsAny<OperationCanceledException>(() => Fill(first, again.Token));
    }

    [Fact]
    public void AnEventIsWaitedFor()
    {
        using var ioEvent = new IoEvent();
        Assert.False(ioEvent.Wait(TimeSpan.Zero));
        ioEvent.Signal();
        ioEvent.Signal();
        Assert.True(ioEvent.Wait(Host.Patience));
        Assert.False(ioEvent.Wait(TimeSpan.FromMilliseconds(1)));
        ioEvent.Dispose();
        Assert.Throws<ObjectDisposedException>(ioEvent.Signal);
    }

    [Fact]
    public void OnlyFilesAreOpened()
    {
        Assert.Equal(GuestMemoryError.NotAFile, Assert.Throws<GuestMemoryException>(() => SharedMemory.Open(_folder.FullName, writable: false)).Error);
        var path = Path.Combine(_folder.FullName, "file");
        File.WriteAllBytes(path, new byte[100]);
        var memory = SharedMemory.Open(path, writable: true);
        using var file = memory.Descriptor;
        Assert.Equal(100u, memory.Size);
    }

    private static void Fill(Tube tube, CancellationToken cancellation)
    {
        while (true) tube.Send(1UL, VmControlJson.Default.UInt64, cancellation: cancellation);
    }

    private static GuestRegionMmap Region(ulong address, ulong size) => new(new MmapRegionBuilder(size).Build(), new GuestAddress(address), "test");
}
