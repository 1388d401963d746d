using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>How fast, how much and from where a handler brings in what no fault has asked for.</summary>
[Collection(RuntimeFolder.Name)]
public sealed partial class FillLimitTests : IDisposable
{
    private const int Pages = 64;
    private readonly TestFolder _folder = new();
    private readonly List<GuestRegionMmap> _regions = [];

    public FillLimitTests(RuntimeFolder runtime)
    {
        _ = runtime;
        _folder.WriteImage("image", Pages);
    }

    public void Dispose()
    {
        foreach (var region in _regions) region.Dispose();
        foreach (var handler in UffdHandler.FindAll()) handler.Stop();
        _folder.Dispose();
    }

    /// <summary>With one byte a second the first page comes, and the next one in more than an hour.</summary>
    [UffdTheory]
    [InlineData(UffdStrategy.Background)]
    [InlineData(UffdStrategy.FaultAll)]
    public void ARateHoldsForAllVmsTogether(UffdStrategy strategy)
    {
        using var handler = UffdHandler.Start(Options(strategy, rate: 1));
        var first = Connect(handler);
        Host.Until(() => handler.GetFigures().FillByteCount > 0);
        var second = Connect(handler);
        TestFolder.AssertPages(first, 0, Pages);
        TestFolder.AssertPages(second, 0, Pages);
        Host.Until(() => handler.FaultCount >= (2 * Pages) - 1);
        Assert.Equal((4096L, (2 * Pages) - 1L, UffdHandlerState.Serving), (handler.GetFigures().FillByteCount, handler.FaultCount, handler.State));
    }

    [UffdTheory]
    [InlineData(UffdStrategy.Background)]
    [InlineData(UffdStrategy.FaultAll)]
    public void ALimitHoldsForAllVmsTogetherAndFaultsAreServed(UffdStrategy strategy)
    {
        using var handler = UffdHandler.Start(Options(strategy, limit: 10 * 4096));
        var first = Connect(handler);
        var second = Connect(handler);
        Host.Until(() => handler.State == UffdHandlerState.Limited && handler.ConnectionCount == 2);
        Assert.Equal(10 * 4096, handler.GetFigures().FillByteCount);
        TestFolder.AssertPages(first, 0, Pages);
        TestFolder.AssertPages(second, 0, Pages);
        Assert.Equal(10 * 4096, handler.GetFigures().FillByteCount);
        Assert.Null(handler.Error);
        // Nothing is missing that a limit could keep away.
        Host.Until(() => handler.State == UffdHandlerState.Serving);
    }

    [UffdFact]
    public void TheEndOfAVmMakesRoom()
    {
        using var handler = UffdHandler.Start(Options(UffdStrategy.Background, limit: Pages * 4096));
        Connect(handler);
        Host.Until(() => handler.GetFigures().IsRestored);
        var late = Connect(handler);
        Host.Until(() => handler.State == UffdHandlerState.Limited);
        Assert.Equal(0, handler.GetFigures().Vms[1].FillByteCount);
        _regions[0].Dispose();
        Host.Until(() => handler.GetFigures() is { IsRestored: true, Vms.Count: 1 });
        Assert.Equal((Pages * 4096L, 0L), (handler.GetFigures().Vms[0].FillByteCount, handler.FaultCount));
        TestFolder.AssertPages(late, 0, Pages);
        Assert.Equal(UffdHandlerState.Serving, handler.State);
    }

    /// <summary>A supervisor knows it from the VMs' states, and so does the next worker.</summary>
    [UffdFact]
    public void AHandlerInAProcessOfItsOwnSaysSo()
    {
        var handler = UffdHandler.StartProcess(Options(UffdStrategy.Background, limit: 10 * 4096));
        var memory = Connect(handler);
        Host.Until(() => handler.State == UffdHandlerState.Limited);
        Assert.Equal(10 * 4096, handler.GetFigures().FillByteCount);
        using (var worker = Pidfd.TryOpen(handler.WorkerProcessId, out _)!) Assert.Equal(0, Pidfd.TryKill(worker));
        TestFolder.AssertPages(memory, 0, Pages);
        Assert.Equal(10 * 4096, handler.GetFigures().FillByteCount);
    }

    [Theory]
    [InlineData(UffdStrategy.OnDemand)]
    [InlineData(UffdStrategy.Window)]
    public void WhereNothingIsFilledThereIsNothingToLimit(UffdStrategy strategy)
    {
        foreach (var options in new[] { Options(strategy, rate: 1), Options(strategy, limit: 4096) })
            Assert.Equal(GuestMemoryError.ValueNotSupported, Assert.ThrowsAny<GuestMemoryException>(() => UffdHandler.Start(options)).Error);
    }

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void TheImageIsReadAheadFromTheFirstVmOn(bool isOff)
    {
        var source = new CountingSource();
        using var handler = UffdHandler.Start(Options(UffdStrategy.OnDemand, noReadAhead: isOff), source);
        Assert.Equal(0, source.Starts);
        for (var vm = 1; vm <= 2; vm++)
        {
            Connect(handler);
            Host.Until(() => handler.ConnectionCount == vm);
            if (!isOff) Host.Until(() => source.Starts > 0);
            Assert.Equal(isOff ? 0 : 1, source.Starts);
        }
    }

    [Fact]
    public void AThreadThatReadsAheadHasTheIdlePriorityOfDisks() => Stress.RunAll(() =>
    {
        Scheduling.LowerDisk();
        var get = RuntimeInformation.ProcessArchitecture == Architecture.X64 ? 252 : 31;
        Assert.Equal(Scheduling.IOPRIO_CLASS_IDLE, syscall(get, Scheduling.IOPRIO_WHO_PROCESS, 0) >> Scheduling.IOPRIO_CLASS_SHIFT);
    });

    /// <summary>The state of a VM of 8 TiB takes memory for what has come, also when it is counted.</summary>
    [Fact]
    public void CountingThePagesOfAStateMakesNone()
    {
        const ulong pages = 1UL << 31;
        using var file = Memfd.CreateSealed("uffd-state", (long)UffdVmState.SizeOf(pages), 0);
        using var state = new UffdVmState(pages, file, isNew: true);
        state.Filled.Set(0, 10);
        state.Filled.Set(pages - 3, 3);
        state.Removed.Set(pages / 2, 100_000);
        state.Removed.Set(5, 10);
        var figures = state.Figures(1, null, file);
        Assert.Equal(((long)pages, 13L, 100_010L, (long)pages - 100_018L), (figures.PageCount, figures.PresentPageCount, figures.RemovedPageCount, figures.MissingPageCount));
        Assert.InRange((long)FileStatus.Get(file).stx_blocks * 512, 4096, 1 << 20);
    }

    [LibraryImport("libc")]
    private static partial nint syscall(nint number, nint which, nint who);

    private UffdHandlerOptions Options(UffdStrategy strategy, ulong rate = 0, ulong limit = 0, bool noReadAhead = false) => new()
    {
        SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = strategy, FillRate = rate, MemoryLimit = limit, NoReadAhead = noReadAhead,
    };

    private GuestMemoryMmap Connect(UffdHandler handler)
    {
        _regions.Add(new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0)));
        var memory = GuestMemoryMmap.FromRegions([_regions[^1]]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        return memory;
    }

    /// <summary>Zeros, and how often they were to be read ahead.</summary>
    private sealed class CountingSource : PageSource
    {
        private int _starts;

        public int Starts => Volatile.Read(ref _starts);

        public override string Name => "zeros";

        public override ulong Length => Pages * 4096;

        public override int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run)
        {
            unsafe
            {
                run = new PageRunData(null, length);
            }

            return 0;
        }

        public override void ReadAhead(CancellationToken cancellation) => Interlocked.Increment(ref _starts);

        public override void Dispose()
        {
        }
    }
}
