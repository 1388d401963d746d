using System.Runtime.InteropServices;
using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>Hand-overs with a second descriptor, the memfd that is the VM's memory, as e2b's fork of Firecracker sends them by default.</summary>
[Collection(RuntimeFolder.Name)]
public sealed class SharedMemoryTests : IDisposable
{
    private const int Pages = 64;
    private const ulong Shared = Userfaultfd.UFFD_FEATURE_EVENT_REMOVE | Userfaultfd.UFFD_FEATURE_MISSING_SHMEM;
    private const ulong Async = Userfaultfd.UFFD_FEATURE_WP_ASYNC | Userfaultfd.UFFD_FEATURE_WP_UNPOPULATED;
    private const ulong MissingAndWp = Userfaultfd.UFFDIO_REGISTER_MODE_MISSING | Userfaultfd.UFFDIO_REGISTER_MODE_WP;
    private readonly TestFolder _folder = new();
    private UffdHandler? _handler;

    public SharedMemoryTests() => _folder.WriteImage("image", Pages);

    public void Dispose()
    {
        _handler?.Stop();
        _handler?.Dispose();
        _folder.Dispose();
    }

    [UffdTheory]
    [InlineData(false, UffdStrategy.OnDemand)]
    [InlineData(false, UffdStrategy.Background)]
    [InlineData(true, UffdStrategy.OnDemand)]
    public void AVmThatSharesItsMemoryIsServed(bool process, UffdStrategy strategy)
    {
        var handler = Start(process, strategy);
        using var region = Memfd();
        using (var peer = new RawPeer(handler.SocketPath, region, Shared))
        {
            peer.SendWith(List(region), region.GetMmapRegion().File!.File);
            TestFolder.AssertPages(GuestMemoryMmap.FromRegions([region]), 0, Pages);
            Assert.Equal(1, handler.ConnectionCount);
            // The memfd has the pages: they were copied into it.
            var expected = new byte[4096];
            var page = new byte[4096];
            TestFolder.Fill(expected, 7);
            Assert.Equal(4096, RandomAccess.Read(region.GetMmapRegion().File!.File, page, 7 * 4096));
            Assert.Equal(expected, page);
            region.GetMmapRegion().Discard(7 * 4096, 4096);
            GuestMemoryMmap.FromRegions([region]).ReadExact(new GuestAddress(7 * 4096), page);
            Assert.True(page.AsSpan().IndexOfAnyExcept((byte)0) < 0);
            Assert.Null(handler.Error);
        }

        Host.Until(() => handler.ConnectionCount == 0);
    }

    [UffdTheory]
    [InlineData("eventfd", "not a memfd")]
    [InlineData("file", "not a memfd")]
    [InlineData("short", "of a memfd that is")]
    [InlineData("three", "at most a memfd")]
    public void WhatIsNoMemoryOfTheVmIsRefused(string what, string error)
    {
        var handler = Start(process: false);
        using var region = Memfd();
        using var eventfd = EventFd.Create();
        using var file = File.OpenHandle(_folder["image"], FileMode.Open, FileAccess.ReadWrite);
        using var tooShort = Interop.Memfd.CreateSealed("short", 4096, 0);
        var before = Host.Resources();
        using (var peer = new RawPeer(handler.SocketPath, region, Shared))
        {
            SafeHandle[] descriptors = what switch { "eventfd" => [eventfd], "file" => [file], "short" => [tooShort], _ => [region.GetMmapRegion().File!.File, eventfd] };
            peer.SendWith(List(region), descriptors);
            Host.Until(() => handler.Error is not null);
            Assert.Contains(error, handler.Error, StringComparison.Ordinal);
            Host.Until(() => peer.IsHungUp);
            Assert.Equal(0, handler.ConnectionCount);
        }

        Host.AssertNoneLeft(before);
    }

    /// <summary>A VMM that has the kernel track writes (WP_ASYNC) finds those of the VM, and not the pages that the handler brought in.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void WritesThatTheKernelTracksAreTheVms(bool isShared)
    {
        var handler = Start(process: false);
        using var region = isShared ? Memfd() : new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        using var peer = new RawPeer(handler.SocketPath, region, Async | (isShared ? Shared : Userfaultfd.UFFD_FEATURE_EVENT_REMOVE), MissingAndWp);
        if (isShared) peer.SendWith(List(region), region.GetMmapRegion().File!.File);
        else peer.Send(List(region), 1);
        TestFolder.AssertPages(GuestMemoryMmap.FromRegions([region]), 0, Pages);
        Assert.Empty(Written(region));
        var memory = GuestMemoryMmap.FromRegions([region]);
        foreach (var page in new ulong[] { 3, 4, 60 }) memory.Write(new GuestAddress(page * 4096), [1]);
        Assert.Equal([3, 4, 60], Written(region));
        Assert.Null(handler.Error);
    }

    /// <summary>With synchronous protection the VMM protects pages itself, and the handler lets the VM write on.</summary>
    [UffdFact]
    public void PagesThatTheVmmProtectsCanBeWritten()
    {
        var handler = Start(process: false);
        using var region = Memfd();
        using var peer = new RawPeer(handler.SocketPath, region, Shared, MissingAndWp);
        peer.SendWith(List(region), region.GetMmapRegion().File!.File);
        TestFolder.AssertPages(GuestMemoryMmap.FromRegions([region]), 0, Pages);
        peer.Protect(region.HostAddress, 4 * 4096);
        GuestMemoryMmap.FromRegions([region]).Write(new GuestAddress(4096), [1]);
        Host.Until(() => handler.GetFigures().WriteProtectedCount == 1);
        Assert.Null(handler.Error);
    }

    [UffdFact]
    public void ConnectSharesTheMemory()
    {
        var handler = Start(process: false);
        using var region = Memfd();
        UffdRegistration.Connect(handler.SocketPath, GuestMemoryMmap.FromRegions([region]), sharesMemory: true);
        TestFolder.AssertPages(GuestMemoryMmap.FromRegions([region]), 0, Pages);
        Assert.Equal(1, handler.ConnectionCount);
        Assert.Null(handler.Error);
    }

    [UffdFact]
    public void ConnectSharesNothingButOneMemfd()
    {
        var handler = Start(process: false);
        using var anonymous = new GuestRegionMmap(new MmapRegionBuilder(4096).Build(), new GuestAddress(0));
        using var first = Memfd();
        using var second = new GuestRegionMmap(new MmapRegionBuilder(4096).WithMemfd().Build(), new GuestAddress(1 << 30));
        foreach (GuestRegionMmap[] regions in new GuestRegionMmap[][] { [anonymous], [first, second] })
        {
            var error = Assert.Throws<GuestMemoryException>(() => UffdRegistration.Connect(handler.SocketPath, GuestMemoryMmap.FromRegions(regions), sharesMemory: true));
            Assert.Equal(GuestMemoryError.ValueNotSupported, error.Error);
            Assert.All(regions, static region => Assert.Null(region.GetMmapRegion().GoneHolder));
        }

        Assert.Equal((0, null), (handler.TotalConnectionCount, handler.Error));
    }

    /// <summary>A peer may not use up the supervisor's descriptors by VMs that are refused.</summary>
    [UffdFact]
    public void ARefusedVmLeavesNoDescriptor()
    {
        var handler = Start(process: true, maxConnections: 1);
        using var first = Memfd();
        using var peer = new RawPeer(handler.SocketPath, first, Shared);
        peer.SendWith(List(first), first.GetMmapRegion().File!.File);
        Host.Until(() => handler.ConnectionCount == 1);
        using var refused = Interop.Memfd.CreateSealed("refused", Pages * 4096, 0);
        peer.SendWith(List(first), refused);
        Host.Until(() => handler.Error is { } error && error.Contains("MaxConnections", StringComparison.Ordinal));
        Assert.DoesNotContain(Directory.GetFiles($"/proc/{handler.ProcessId}/fd"), static file => new FileInfo(file).LinkTarget?.Contains("refused", StringComparison.Ordinal) == true);
        TestFolder.AssertPages(GuestMemoryMmap.FromRegions([first]), 0, Pages);
    }

    private UffdHandler Start(bool process, UffdStrategy strategy = UffdStrategy.OnDemand, int maxConnections = int.MaxValue)
    {
        var options = new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = strategy, MaxConnections = maxConnections };
        return _handler = process ? UffdHandler.StartProcess(options) : UffdHandler.Start(options);
    }

    private static GuestRegionMmap Memfd() => new(new MmapRegionBuilder(Pages * 4096).WithMemfd().Build(), new GuestAddress(0));

    private static string List(GuestRegionMmap region) => Encoding.UTF8.GetString(UffdMappingList.ToJson([new GuestRegionUffdMapping(region.HostAddress, region.Size, 0, 4096)]));

    private static List<ulong> Written(GuestRegionMmap region)
    {
        using var pagemap = File.OpenHandle("/proc/self/pagemap");
        var found = new PageRegion[Pages];
        var count = Pagemap.TryScanWritten(pagemap, region.HostAddress, region.HostAddress + region.Size, found, protect: false, out _);
        Assert.InRange(count, 0, Pages);
        return [.. found.Take((int)count).SelectMany(range => Enumerable.Range(0, (int)((range.end - range.start) / 4096)).Select(page => ((range.start - region.HostAddress) / 4096) + (ulong)page))];
    }
}
