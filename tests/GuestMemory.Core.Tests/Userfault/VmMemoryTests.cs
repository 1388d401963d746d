using System.Runtime.InteropServices;
using GuestMemory.Core.Images;

namespace GuestMemory.Core.Tests;

/// <summary>The memory of a VM, read beside its handler by the memfd that its VMM handed over.</summary>
[Collection(RuntimeFolder.Name)]
public sealed class VmMemoryTests(RuntimeFolder runtime) : VmFixture(runtime)
{
    private const int Pages = 256;
    /// <summary>What the VM wrote, what it gave back, and what it has not touched, which does not come by being read.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void ItIsWhatTheVmSees(bool process)
    {
        var handler = Start(process);
        var guest = Connect(handler);
        TestFolder.AssertPages(guest, 0, 16);
        guest.Write(new GuestAddress(3 * 4096), Numbered(1003));
        guest.Write(new GuestAddress(100 * 4096), Numbered(1100));
        Regions[0].GetMmapRegion().Discard(5 * 4096, 2 * 4096);
        Regions[0].GetMmapRegion().Discard(50 * 4096, 4096);
        guest.Write(new GuestAddress(6 * 4096), [1]);
        var vm = Assert.Single(handler.GetVms());
        Assert.True(vm.CanReadMemory);
        var memory = vm.OpenMemory();
        // 16 pages, another, and one that was given back.
        Host.Until(() => handler.FaultCount == 18);
        var before = handler.GetFigures();
        var region = Assert.Single(memory.Regions);
        Assert.Equal((0UL, Pages * 4096UL, MemoryProtection.Read, "h-1"), (region.GuestAddress, region.Size, region.Protection, region.Name));
        AssertPage(memory, 0, Numbered(0));
        AssertPage(memory, 3, Numbered(1003));
        AssertPage(memory, 5, new byte[4096]);
        AssertPage(memory, 6, [1, .. new byte[4095]]);
        AssertPage(memory, 50, new byte[4096]);
        AssertPage(memory, 100, Numbered(1100));
        for (var page = 101; page < Pages; page++) AssertPage(memory, page, Numbered(page));
        // Any bytes, also across what has come and what has not.
        var all = new byte[Pages * 4096];
        memory.ReadExact(new GuestAddress(0), all);
        foreach (var (at, length) in new[] { (0, 1), (4095, 2), (15 * 4096 + 100, 3 * 4096), (49 * 4096 - 7, 2 * 4096), (99 * 4096 + 4000, 5000), (Pages * 4096 - 1, 1) })
        {
            var bytes = new byte[length];
            memory.ReadExact(new GuestAddress((ulong)at), bytes);
            Assert.Equal(all[at..(at + length)], bytes);
        }

        Assert.Equal(BitConverter.ToUInt64(all, 0x1000), memory.ReadObject<ulong>(new GuestAddress(0x1000)));
        var after = handler.GetFigures();
        Assert.Equal((before.FaultCount, before.PresentPageCount), (after.FaultCount, after.PresentPageCount));
        // And the VM sees the same.
        var seen = new byte[Pages * 4096];
        guest.ReadExact(new GuestAddress(0), seen);
        Assert.Equal(seen, all);
        region.Dispose();
        Assert.Equal(GuestMemoryError.RegionDisposed, Assert.Throws<GuestMemoryException>(() => memory.ReadExact(new GuestAddress(0), new byte[1])).Error);
    }

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void ItIsReadAndNotWritten(bool process)
    {
        var handler = Start(process);
        var guest = Connect(handler);
        var memory = Assert.Single(handler.GetVms()).OpenMemory();
        var error = Assert.Throws<GuestMemoryException>(() => memory.Write(new GuestAddress(0), [1]));
        Assert.Equal(GuestMemoryError.PageNotAccessible, error.Error);
        Assert.Contains("its protection is Read", error.Message, StringComparison.Ordinal);
        TestFolder.AssertPages(guest, 0, 1);
        memory.Regions[0].Dispose();
    }

    /// <summary>Regions lie at their offsets in the image, in whatever order they were handed over, and with layers and chunks under them.</summary>
    [UffdTheory]
    [InlineData(false, false)]
    [InlineData(true, false)]
    [InlineData(false, true)]
    [InlineData(true, true)]
    public void ItHasTheImageUnderIt(bool process, bool chunked)
    {
        Folder.WriteImage("image", Pages);
        var image = "image";
        if (chunked)
        {
            using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
            for (var page = 0; page < Pages; page++) region.Write(new MemoryRegionAddress((ulong)page * 4096), Numbered(page));
            ChunkedImage.Write(GuestMemoryMmap.FromRegions([region]), Folder[image = "chunks"], overwrite: false);
        }

        using (var layer = File.Create(Folder["layer"]))
        {
            layer.SetLength(Pages * 4096);
            layer.Position = 200 * 4096;
            layer.Write(Numbered(2200));
        }

        var options = new UffdHandlerOptions { SocketPath = Folder["h.sock"], MemoryPath = Folder[image], LayerPaths = [Folder["layer"]], Strategy = UffdStrategy.OnDemand };
        var handler = Start(process, options);
        var memfd = Memfd();
        using var peer = new RawPeer(handler.SocketPath, memfd, Userfaultfd.UFFD_FEATURE_EVENT_REMOVE | Userfaultfd.UFFD_FEATURE_MISSING_SHMEM);
        peer.SendWith(System.Text.Encoding.UTF8.GetString(UffdMappingList.ToJson(
        [
            new GuestRegionUffdMapping(memfd.HostAddress + (64 * 4096), 192 * 4096, 64 * 4096, 4096),
            new GuestRegionUffdMapping(memfd.HostAddress, 64 * 4096, 0, 4096),
        ])), memfd.GetMmapRegion().File!.File);
        Host.Until(() => handler.ConnectionCount == 1);
        var guest = GuestMemoryMmap.FromRegions([memfd]);
        guest.Write(new GuestAddress(70 * 4096), Numbered(1070));
        guest.Write(new GuestAddress(7 * 4096), Numbered(1007));
        // Whatever becomes of the paths.
        File.Delete(Folder[image]);
        File.Delete(Folder["layer"]);
        var memory = Assert.Single(handler.GetVms()).OpenMemory();
        Assert.Equal([0, 64 * 4096UL], memory.Regions.Select(static region => region.GuestAddress));
        for (var page = 0; page < Pages; page++) AssertPage(memory, page, Numbered(page switch { 7 => 1007, 70 => 1070, 200 => 2200, _ => page }));
        foreach (var region in memory.Regions) region.Dispose();
    }

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void WhatTheVmmDidNotShareCannotBeRead(bool process)
    {
        var handler = Start(process);
        var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        Regions.Add(region);
        UffdRegistration.Connect(handler.SocketPath, GuestMemoryMmap.FromRegions([region]));
        Host.Until(() => handler.ConnectionCount == 1);
        var vm = Assert.Single(handler.GetVms());
        Assert.False(vm.CanReadMemory);
        var error = Assert.Throws<GuestMemoryException>(() => vm.OpenMemory());
        Assert.Equal(GuestMemoryError.MemoryNotShared, error.Error);
        Assert.Contains("VM 'h-1'", error.Message, StringComparison.Ordinal);
        region.Dispose();
        Host.Until(() => handler.ConnectionCount == 0);
        Assert.Equal(GuestMemoryError.VmNotFound, Assert.Throws<GuestMemoryException>(() => vm.OpenMemory()).Error);
    }

    /// <summary>A VMM that maps its memfd privately has its pages elsewhere: that is an error, and not the image's page.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void AMemfdThatIsNotTheMemoryIsNoticed(bool process)
    {
        var handler = Start(process);
        var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        Regions.Add(region);
        using var other = Interop.Memfd.CreateSealed("other", Pages * 4096, 0);
        using var peer = new RawPeer(handler.SocketPath, region, Userfaultfd.UFFD_FEATURE_EVENT_REMOVE);
        peer.SendWith(System.Text.Encoding.UTF8.GetString(UffdMappingList.ToJson([new GuestRegionUffdMapping(region.HostAddress, region.Size, 0, 4096)])), other);
        TestFolder.AssertPages(GuestMemoryMmap.FromRegions([region]), 0, 4);
        Host.Until(() => handler.FaultCount == 4);
        var memory = Assert.Single(handler.GetVms()).OpenMemory();
        var error = Assert.Throws<GuestMemoryException>(() => memory.ReadExact(new GuestAddress(4096), new byte[8]));
        Assert.Equal(GuestMemoryError.PageNotAccessible, error.Error);
        Assert.Contains("no shared mapping", error.Message, StringComparison.Ordinal);
        AssertPage(memory, 4, Numbered(4));
        memory.Regions[0].Dispose();
    }

    /// <summary>What is open lives on: without its handler, and without its VM.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void ItOutlivesVmAndHandler(bool process)
    {
        var before = Host.Resources();
        var handler = Start(process);
        var guest = Connect(handler);
        guest.Write(new GuestAddress(4096), Numbered(1001));
        var memory = Assert.Single(handler.GetVms()).OpenMemory();
        foreach (var region in Regions) region.Dispose();
        Regions.Clear();
        Host.Until(() => handler.ConnectionCount == 0);
        handler.Stop();
        handler.Dispose();
        AssertPage(memory, 1, Numbered(1001));
        AssertPage(memory, 2, Numbered(2));
        memory.Regions[0].Dispose();
        // It closes what it has open a second time, too.
        memory.Regions[0].Dispose();
        Host.AssertNoneLeft(before);
    }

    /// <summary>
    /// Each page is read while the VM writes and gives back others, and while workers die: it is at any moment what the VM made of it last, or
    /// what it makes of it now.
    /// </summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void EveryPageIsRightAtEveryMoment(bool process)
    {
        var handler = Start(process);
        var guest = Connect(handler);
        // The number in each page, -1 for zeros; and how often it began and ended to change.
        var now = Enumerable.Range(0, Pages).ToArray();
        var changes = new int[Pages];
        var (compared, tries) = (0, 0);
        var over = false;
        var writing = Task.Run(() =>
        {
            var random = new Random(7);
            for (var i = 1; !Volatile.Read(ref over); i++)
            {
                var page = random.Next(Pages);
                var number = random.Next(3) == 0 ? -1 : i;
                Interlocked.Increment(ref changes[page]);
                if (number == -1) Regions[0].GetMmapRegion().Discard((ulong)page * 4096, 4096);
                else guest.Write(new GuestAddress((ulong)page * 4096), Numbered(number));
                Volatile.Write(ref now[page], number);
                Interlocked.Increment(ref changes[page]);
                if (process && i % 500 == 0 && handler.WorkerProcessId is var worker and > 0) Signal(worker, 9);
            }
        });
        try
        {
            var memory = Assert.Single(handler.GetVms()).OpenMemory();
            var bytes = new byte[4096];
            var read = new Random(9);
            for (; compared < 10_000; tries++)
            {
                var page = read.Next(Pages);
                var before = Volatile.Read(ref changes[page]);
                var number = Volatile.Read(ref now[page]);
                memory.ReadExact(new GuestAddress((ulong)page * 4096), bytes);
                // Where it changed meanwhile, a page may be one half the old and one half the new.
                if ((before & 1) != 0 || Interlocked.CompareExchange(ref changes[page], 0, -1) != before) continue;
                compared++;
                Assert.True(bytes.AsSpan().SequenceEqual(number < 0 ? new byte[4096] : Numbered(number)), $"page {page} of {number}");
            }

            memory.Regions[0].Dispose();
        }
        finally
        {
            Volatile.Write(ref over, true);
        }

        Assert.True(writing.Wait(Host.Patience), $"{compared} of {tries} pages");
    }

    private static byte[] Numbered(int number)
    {
        var page = new byte[4096];
        TestFolder.Fill(page, number);
        return page;
    }

    private static void AssertPage(GuestMemoryMmap memory, int number, byte[] expected)
    {
        var page = new byte[4096];
        memory.ReadExact(new GuestAddress((ulong)number * 4096), page);
        Assert.True(expected.AsSpan().SequenceEqual(page), $"page {number}");
    }

    private UffdHandler Start(bool process)
    {
        Folder.WriteImage("image", Pages);
        var options = new UffdHandlerOptions { SocketPath = Folder["h.sock"], MemoryPath = Folder["image"], Strategy = UffdStrategy.OnDemand };
        return Start(process, options);
    }

    private GuestMemoryMmap Connect(UffdHandler handler)
    {
        var memory = GuestMemoryMmap.FromRegions([Memfd()]);
        UffdRegistration.Connect(handler.SocketPath, memory, sharesMemory: true);
        Host.Until(() => handler.ConnectionCount == 1);
        return memory;
    }

    private GuestRegionMmap Memfd() => Region(new MmapRegionBuilder(Pages * 4096).WithMemfd());
}
