using System.Diagnostics;
using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>Storms, crowds and deaths: other VMs are served as before, and nothing is left.</summary>
public sealed class AdversityTests : IDisposable
{
    private const int Pages = 256;
    private readonly TestFolder _folder = new();

    public AdversityTests() => _folder.WriteImage("image", Pages);

    public void Dispose() => _folder.Dispose();

    [UffdTheory]
    [InlineData(UffdStrategy.OnDemand)]
    [InlineData(UffdStrategy.Background)]
    public void AStormOfRemovalsHarmsNoOtherVm(UffdStrategy strategy)
    {
        using var handler = Start(strategy);
        using var wild = Region();
        using var calm = Region();
        UffdRegistration.Connect(handler.SocketPath, GuestMemoryMmap.FromRegions([wild]));
        var (removals, over) = (0, false);
        var storm = new Thread(() =>
        {
            while (removals < 50_000 || !Volatile.Read(ref over)) wild.GetMmapRegion().Discard((ulong)(removals++ % Pages) * 4096, 4096);
        });
        storm.Start();
        var memory = GuestMemoryMmap.FromRegions([calm]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, Pages);
        // It blew all the time.
        Assert.True(storm.IsAlive);
        Volatile.Write(ref over, true);
        Assert.True(storm.Join(TimeSpan.FromMinutes(2)), $"hung: {handler.Error}");
        var page = new byte[4096];
        for (var i = 0; i < Pages; i++)
        {
            GuestMemoryMmap.FromRegions([wild]).ReadExact(new GuestAddress((ulong)i * 4096), page);
            Assert.DoesNotContain(page, value => value != 0);
        }

        Assert.Equal(removals, handler.GetFigures().RemoveCount);
        Assert.Null(handler.Error);
    }

    [UffdFact]
    public void FiveHundredVms()
    {
        var before = Host.Resources();
        using (var handler = Start(UffdStrategy.Background))
        {
            var regions = Enumerable.Range(0, 500).Select(_ => Region()).ToArray();
            foreach (var region in regions) UffdRegistration.Connect(handler.SocketPath, GuestMemoryMmap.FromRegions([region]));
            Host.Until(() => handler.ConnectionCount == 500);
            Assert.Equal(500, handler.ConnectionCount);
            for (var i = 0; i < 500; i += 7) TestFolder.AssertPages(GuestMemoryMmap.FromRegions([regions[i]]), 0, Pages);
            Host.Until(() => handler.GetFigures().PercentPresent >= 100);
            Assert.Equal((500, 500L * Pages), (handler.GetFigures().Vms.Count, handler.GetFigures().PresentPageCount));
            foreach (var region in regions) region.Dispose();
            Host.Until(() => handler.ConnectionCount == 0);
            Assert.Equal(0, handler.ConnectionCount);
            Assert.Null(handler.Error);
        }

        Host.AssertNoneLeft(before);
    }

    [RootFact]
    public void WithoutHugePagesAFaultWaitsUntilThePoolGrows()
    {
        const int Huge = 2 << 20;
        using var pool = new HugePagePoolOf(Huge, 1);
        if (pool.Free == 0) Assert.Fail("not one huge page could be had; free memory and try again");
        _folder.WriteImage("image", 1, Huge);
        using var handler = Start(UffdStrategy.OnDemand);
        // Whatever is free is set aside for somebody else; the VM's own memory was never set aside.
        using var others = new MmapRegionBuilder((ulong)pool.Free * Huge).WithHugePages(Huge).Build();
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Huge).WithHugePages(Huge).WithFlags(MapFlags.Private | MapFlags.Anonymous | MapFlags.NoReserve).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        var page = new byte[Huge];
        Exception? failure = null;
        var touch = new Thread(() => failure = Record.Exception(() => memory.ReadExact(new GuestAddress(0), page)));
        touch.Start();
        Host.Until(() => handler.GetFigures().DeferredCount >= 1);
        Assert.Equal((0L, true), (handler.FaultCount, handler.GetFigures().QueueDepth >= 1));
        Assert.Contains("Enlarge the pool of huge pages", handler.Error, StringComparison.Ordinal);
        Assert.True(touch.IsAlive);
        using (new HugePagePoolOf(Huge, 1))
        {
            Assert.True(touch.Join(Host.Patience), handler.Error);
            Assert.Null(failure);
            var expected = new byte[Huge];
            TestFolder.Fill(expected, 0);
            Assert.True(expected.AsSpan().SequenceEqual(page));
            // A touch that a signal interrupts faults again.
            Host.Until(() => handler.FaultCount >= 1);
            Assert.Equal((0L, 0L, (long)Huge), (handler.GetFigures().QueueDepth, handler.GetFigures().PoisonedCount, handler.ByteCount));
            region.Dispose();
        }
    }

    [UffdFact]
    public void WithoutDescriptorsTheNextVmWaits()
    {
        using var handler = Start(UffdStrategy.OnDemand);
        using var served = Region();
        var memory = GuestMemoryMmap.FromRegions([served]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        Host.Until(() => handler.ConnectionCount == 1);
        using var late = Region();
        var id = Environment.ProcessId.ToString(CultureInfo.InvariantCulture);
        var limit = Compiler.Run("prlimit", "--pid", id, "--nofile", "--noheadings", "--output", "SOFT").Output.Trim();
        var fillers = new List<FileStream>();
        RawPeer? peer = null;
        try
        {
            // Every number below the new limit is taken, but for what the peer itself needs.
            var highest = Directory.GetFiles("/proc/self/fd").Max(path => int.Parse(Path.GetFileName(path), CultureInfo.InvariantCulture));
            peer = new RawPeer(handler.SocketPath, late, connect: false);
            while (fillers.Count == 0 || fillers[^1].SafeFileHandle.DangerousGetHandle() < highest + 8) fillers.Add(File.OpenRead("/dev/null"));
            var taken = (int)fillers[^1].SafeFileHandle.DangerousGetHandle() + 1;
            Assert.Equal(0, Compiler.Run("prlimit", "--pid", id, $"--nofile={taken + 12}:").Code);
            while (true)
            {
                try
                {
                    fillers.Add(File.OpenRead("/dev/null"));
                }
                catch (IOException)
                {
                    break;
                }
            }

            peer.Connect(handler.SocketPath);
            peer.Send([new GuestRegionUffdMapping(late.HostAddress, Pages * 4096, 0, 4096)]);
            Host.Until(() => handler.Error is not null);
            Assert.Contains("ulimit -n", handler.Error, StringComparison.Ordinal);
            TestFolder.AssertPages(memory, 0, 0, Pages, isLimited: false);
        }
        finally
        {
            foreach (var filler in fillers) filler.Dispose();
            Assert.Equal(0, Compiler.Run("prlimit", "--pid", id, $"--nofile={limit}:").Code);
        }

        TestFolder.AssertPages(GuestMemoryMmap.FromRegions([late]), 0, Pages);
        Assert.Equal(2, handler.ConnectionCount);
        late.Dispose();
        peer.Dispose();
    }

    [CompilerFact]
    public void PeersThatAreKilledAtAnyMoment()
    {
        _folder.WriteImage("image", 16384);
        using var handler = Start(UffdStrategy.Background);
        var client = Compiler.Compile(Path.Combine(AppContext.BaseDirectory, "Userfault", "uffd-client.c"), _folder["client"]);
        var before = Host.Resources();
        for (var round = 0; round < 60; round++)
        {
            using var process = Process.Start(new ProcessStartInfo(client, [handler.SocketPath, "64", "--threads", "2", "--stay"]) { UseShellExecute = false, RedirectStandardOutput = true })!;
            Thread.Sleep(round);
            process.Kill();
            process.WaitForExit();
        }

        Host.Until(() => handler.ConnectionCount == 0);
        Assert.Equal((0, UffdHandlerState.Listening), (handler.ConnectionCount, handler.State));
        // A VMM may end in the middle of its list, or between its list and the look at its process.
        Assert.True(handler.Error is null || handler.Error.Contains("in the middle", StringComparison.Ordinal) || handler.Error.Contains("ended during the hand-over", StringComparison.Ordinal), handler.Error);
        using (var region = Region())
        {
            var memory = GuestMemoryMmap.FromRegions([region]);
            UffdRegistration.Connect(handler.SocketPath, memory);
            TestFolder.AssertPages(memory, 0, Pages);
        }

        Host.AssertNoneLeft(before);
    }

    private static GuestRegionMmap Region() => new(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));

    private UffdHandler Start(UffdStrategy strategy) => UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = strategy });
}
