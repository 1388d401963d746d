using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>What a VM does, or what befalls it, is in no other VM's way: each test shows another VM's faults answered while it lasts.</summary>
public sealed partial class IsolationTests : IDisposable
{
    private const int Pages = TrickySource.Pages;
    private const ulong Gib = 1UL << 30;

    private readonly TestFolder _folder = new();
    private readonly List<IDisposable> _open = [];

    public void Dispose()
    {
        for (var i = _open.Count - 1; i >= 0; i--) _open[i].Dispose();
        _folder.Dispose();
    }

    /// <summary>A VM says that its pages have 1 GiB, and they have 4 KiB: it gets the page that it touched, not 1 GiB at once.</summary>
    [UffdTheory]
    [InlineData(UffdStrategy.OnDemand)]
    [InlineData(UffdStrategy.Window)]
    public void PagesOfAGibibyteThatAreNone(UffdStrategy strategy)
    {
        WriteSparseImage(Gib);
        using var handler = Start(strategy);
        var quiet = Connect(handler, Pages);
        var wild = Keep(new GuestRegionMmap(new MmapRegionBuilder(2 * Gib).WithFlags(MapFlags.Private | MapFlags.Anonymous | MapFlags.NoReserve).Build(), new GuestAddress(0)));
        var start = (wild.HostAddress + Gib - 1) & ~(Gib - 1);
        var peer = Keep(new RawPeer(handler.SocketPath, wild));
        peer.Send([new GuestRegionUffdMapping(start, Gib, 0, Gib)]);
        var memory = GuestMemoryMmap.FromRegions([wild]);
        TestFolder.AssertPages(memory, start - wild.HostAddress + (5 * 4096), 5, 1);
        TestFolder.AssertPages(quiet, 0, Pages);
        // The page behind the data, and one in the middle of a hole.
        AssertZero(memory, start - wild.HostAddress + (Pages * 4096));
        AssertZero(memory, start - wild.HostAddress + (Gib / 2));
        Assert.InRange(handler.GetFigures().Vms.Max(vm => vm.PresentPageCount), 3, 1024);
        Assert.Null(handler.Error);
    }

    /// <summary>The thread that removes does not run again for a while after its removal was read: until then no page of its VM can be filled.</summary>
    [UffdTheory]
    [InlineData(UffdStrategy.OnDemand)]
    [InlineData(UffdStrategy.Background)]
    public void ARemoverThatRarelyRuns(UffdStrategy strategy)
    {
        _folder.WriteImage("image", Pages);
        using var handler = Start(strategy);
        var wild = Keep(new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0)));
        var memory = GuestMemoryMmap.FromRegions([wild]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        var over = false;
        Thread[] threads =
        [
            // It has one processor with the remover, and takes nearly all of it.
            new(() =>
            {
                _ = StayOn(0);
                while (!Volatile.Read(ref over)) Thread.SpinWait(100);
            }),
            new(() =>
            {
                _ = StayOn(0);
                _ = RunWhenIdle();
                for (var i = 0; !Volatile.Read(ref over); i++) wild.GetMmapRegion().Discard((ulong)(i % Pages) * 4096, 4096);
            }),
            new(() =>
            {
                for (var i = 0; !Volatile.Read(ref over); i++) memory.ReadExact(new GuestAddress((ulong)(i % Pages) * 4096), new byte[8]);
            }),
        ];
        foreach (var thread in threads) thread.Start();
        try
        {
            Host.Until(() => handler.GetFigures().DeferredCount >= 1);
            TestFolder.AssertPages(Connect(handler, Pages), 0, Pages);
            Assert.All(threads, static thread => Assert.True(thread.IsAlive));
        }
        finally
        {
            Volatile.Write(ref over, true);
            foreach (var thread in threads) thread.Join();
        }

        Assert.Null(handler.Error);
    }

    /// <summary>A VM without huge pages waits for them; another one is filled in the background meanwhile, at once and not a piece now and then.</summary>
    [RootFact]
    public void AnEmptyPoolOfHugePages()
    {
        const int Huge = 2 << 20;
        WriteSparseImage(4 * Gib);
        using var pool = new HugePagePoolOf(Huge, 1);
        if (pool.Free == 0) Assert.Fail("not one huge page could be had; free memory and try again");
        using var handler = Start(UffdStrategy.Background);
        // Whatever is free is set aside for somebody else; the VM's own memory was never set aside.
        using var others = new MmapRegionBuilder((ulong)pool.Free * Huge).WithHugePages(Huge).Build();
        var starved = Keep(new GuestRegionMmap(new MmapRegionBuilder(Huge).WithHugePages(Huge).WithFlags(MapFlags.Private | MapFlags.Anonymous | MapFlags.NoReserve).Build(), new GuestAddress(0)));
        var memory = GuestMemoryMmap.FromRegions([starved]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        var touch = new Thread(() => _ = Record.Exception(() => memory.ReadExact(new GuestAddress(0), new byte[8])));
        touch.Start();
        Host.Until(() => handler.GetFigures().DeferredCount >= 1);
        var quiet = Keep(new GuestRegionMmap(new MmapRegionBuilder(4 * Gib).WithFlags(MapFlags.Private | MapFlags.Anonymous | MapFlags.NoReserve).Build(), new GuestAddress(0)));
        UffdRegistration.Connect(handler.SocketPath, GuestMemoryMmap.FromRegions([quiet]));
        TestFolder.AssertPages(GuestMemoryMmap.FromRegions([quiet]), 0, Pages);
        Host.Until(() => handler.GetFigures().Vms.Any(static vm => vm.PageCount * 4096 == (long)(4 * Gib) && vm.MissingPageCount == 0));
        Assert.True(touch.IsAlive);
        Assert.Contains("Enlarge the pool of huge pages", handler.Error, StringComparison.Ordinal);
        using (new HugePagePoolOf(Huge, 1)) Assert.True(touch.Join(Host.Patience), handler.Error);
    }

    public static TheoryData<string, UffdOnError> Exceptions => new()
    {
        { nameof(GuestMemoryException), UffdOnError.Poison },
        { nameof(InvalidOperationException), UffdOnError.Poison },
    };

    /// <summary>An exception while a VM is served is the end of that VM's service, and of nothing else.</summary>
    [UffdTheory]
    [MemberData(nameof(Exceptions))]
    public void AnExceptionWhileAVmIsServed(string exception, UffdOnError onError)
    {
        using var handler = Start(new TrickySource { BadPage = 7, Exception = exception }, UffdStrategy.OnDemand, onError);
        var quiet = Connect(handler, Pages);
        var wild = Connect(handler, Pages);
        TestFolder.AssertPages(wild, 0, 4);
        _ = Assert.ThrowsAny<GuestMemoryException>(() => ReadPage(wild, 7));
        TestFolder.AssertPages(quiet, 0, 7);
        Host.Until(() => handler.ConnectionCount == 1);
        Assert.Equal(UffdHandlerState.Serving, handler.State);
        Assert.Contains("not served any more", handler.Error, StringComparison.Ordinal);
        // Nothing is left that a thread could wait for, and what had come is there.
        Assert.All(Enumerable.Range(8, Pages - 8), page => Assert.ThrowsAny<GuestMemoryException>(() => ReadPage(wild, page)));
        TestFolder.AssertPages(quiet, 8, Pages - 8);
    }

    /// <summary>Kernels before 6.10 know no read without waiting; a VMM that makes its userfaultfd blocking again and again holds up its own service, which ends all the same.</summary>
    [UffdFact]
    public void ABlockingUserfaultfdBeforeLinux6_10()
    {
        _folder.WriteImage("image", Pages);
        var before = Host.Resources();
        UffdHandler? handler = null;
        Sandbox.WithoutNoWait(() => handler = Start(UffdStrategy.OnDemand));
        using (handler)
        {
            var quiet = Connect(handler!, Pages);
            var wild = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
            var peer = new RawPeer(handler!.SocketPath, wild);
            peer.Send([new GuestRegionUffdMapping(wild.HostAddress, Pages * 4096, 0, 4096)]);
            Host.Until(() => handler.ConnectionCount == 2);
            var over = false;
            var storm = new Thread(() =>
            {
                while (!Volatile.Read(ref over)) peer.MakeBlocking();
            });
            storm.Start();
            try
            {
                // The service wakes for an event, and then, in the end, is in a read that ends with the next event alone.
                var page = 0UL;
                Host.Until(() =>
                {
                    wild.GetMmapRegion().Discard(page % Pages * 4096, 4096);
                    AssertZero(GuestMemoryMmap.FromRegions([wild]), page++ % Pages * 4096);
                    return IsInRead("uffd-vm-");
                });
                TestFolder.AssertPages(quiet, 0, Pages);
                TestFolder.AssertPages(Connect(handler, Pages), 0, Pages);
                Assert.Equal(3, handler.ConnectionCount);
            }
            finally
            {
                Volatile.Write(ref over, true);
                storm.Join();
            }

            peer.Dispose();
            wild.Dispose();
            Host.Until(() => handler.ConnectionCount == 2);
            TestFolder.AssertPages(Connect(handler, Pages), 0, Pages);
            Assert.Null(handler.Error);
        }

        Dispose(all: true);
        Host.AssertNoneLeft(before);
    }

    /// <summary>A connection brings as many VMs as it is allowed to, and those that are served go on.</summary>
    [UffdTheory]
    [InlineData(8)]
    [InlineData(int.MaxValue)]
    public void FifteenHundredVmsOverOneConnection(int limit)
    {
        _folder.WriteImage("image", Pages);
        using var handler = Start(UffdStrategy.OnDemand, limit);
        var quiet = Connect(handler, Pages);
        TestFolder.AssertPages(quiet, 0, 4);
        var region = Keep(new GuestRegionMmap(new MmapRegionBuilder(4096).Build(), new GuestAddress(0)));
        var peer = Keep(new RawPeer(handler.SocketPath, region));
        for (var vm = 0; vm < 1500; vm++) peer.Send([new GuestRegionUffdMapping(region.HostAddress, 4096, 0, 4096)]);
        TestFolder.AssertPages(quiet, 4, Pages / 2);
        Host.Until(() => handler.Error is not null);
        Assert.Contains("limit", handler.Error, StringComparison.Ordinal);
        // When the last message is refused all before it were looked at.
        peer.Send("nonsense", 1);
        Host.Until(() => handler.Error!.Contains("JSON", StringComparison.Ordinal));
        Assert.Equal((Math.Min(limit, 65), Math.Min(limit, 65)), (handler.TotalConnectionCount, handler.ConnectionCount));
        TestFolder.AssertPages(quiet, 4 + (Pages / 2), Pages - 4 - (Pages / 2));
    }

    /// <summary>A list may not have more bytes than the image, however often it names the same ones.</summary>
    [UffdFact]
    public void AListOfEightThousandRegionsOfAGibibyte()
    {
        WriteSparseImage(Gib);
        using var handler = Start(UffdStrategy.OnDemand);
        var quiet = Connect(handler, Pages);
        using (var peer = new RawPeer(handler.SocketPath))
        {
            peer.Send([.. Enumerable.Range(0, 8000).Select(static i => new GuestRegionUffdMapping((ulong)i * Gib, Gib, 0, 4096))]);
            Host.Until(() => handler.Error is not null);
        }

        Assert.Contains("more bytes in all than the image", handler.Error, StringComparison.Ordinal);
        Assert.Equal(1, handler.TotalConnectionCount);
        TestFolder.AssertPages(quiet, 0, Pages);
    }

    private static void ReadPage(GuestMemoryMmap memory, int page) => memory.ReadExact(new GuestAddress((ulong)page * 4096), new byte[4096]);

    private static void AssertZero(GuestMemoryMmap memory, ulong at)
    {
        var bytes = new byte[4096];
        memory.ReadExact(new GuestAddress(at), bytes);
        Assert.DoesNotContain(bytes, static value => value != 0);
    }

    /// <summary>Whether a thread of this process is in read(2).</summary>
    private static bool IsInRead(string name) => Directory.GetDirectories("/proc/self/task").Any(task =>
    {
        try
        {
            return File.ReadAllText(Path.Combine(task, "comm")).StartsWith(name, StringComparison.Ordinal)
                && File.ReadAllText(Path.Combine(task, "syscall")).StartsWith(RuntimeInformation.ProcessArchitecture == Architecture.X64 ? "0 " : "63 ", StringComparison.Ordinal);
        }
        catch (IOException)
        {
            return false;
        }
    });

    [LibraryImport("libc")]
    private static unsafe partial int sched_setaffinity(int pid, nuint cpusetsize, ulong* mask);

    [LibraryImport("libc")]
    private static unsafe partial int sched_setscheduler(int pid, int policy, int* param);

    private static unsafe int StayOn(int processor)
    {
        var mask = 1UL << processor;
        return sched_setaffinity(0, sizeof(ulong), &mask);
    }

    private static unsafe int RunWhenIdle()
    {
        var priority = 0;
        return sched_setscheduler(0, 5 /* SCHED_IDLE */, &priority);
    }

    private void Dispose(bool all)
    {
        for (var i = _open.Count - 1; all && i >= 0; i--) _open[i].Dispose();
        _open.Clear();
    }

    private T Keep<T>(T item)
        where T : IDisposable
    {
        _open.Add(item);
        return item;
    }

    private GuestMemoryMmap Connect(UffdHandler handler, int pages)
    {
        var memory = GuestMemoryMmap.FromRegions([Keep(new GuestRegionMmap(new MmapRegionBuilder((ulong)pages * 4096).Build(), new GuestAddress(0)))]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        return memory;
    }

    private void WriteSparseImage(ulong length)
    {
        _folder.WriteImage("image", Pages);
        using var file = File.OpenWrite(_folder["image"]);
        file.SetLength((long)length);
    }

    private UffdHandler Start(UffdStrategy strategy, int maxConnections = int.MaxValue) =>
        UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = strategy, MaxConnections = maxConnections });

    private UffdHandler Start(PageSource source, UffdStrategy strategy, UffdOnError onError) =>
        UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = "", Strategy = strategy, OnError = onError }, source);
}
