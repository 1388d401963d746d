namespace GuestMemory.Core.Tests;

/// <summary>A VM's part of a restore: touches of every pattern, and a balloon, against this handler and the C one.</summary>
public sealed class TouchTests : IDisposable
{
    private const int Pages = 1000;
    private readonly TestFolder _folder = new();

    public TouchTests() => _folder.WriteImage("image", Pages);

    public void Dispose() => _folder.Dispose();

    [UffdTheory]
    [InlineData(UffdTouchPattern.Sequential, 1, 0)]
    [InlineData(UffdTouchPattern.Random, 1, 0)]
    [InlineData(UffdTouchPattern.Random, 3, 500)]
    [InlineData(UffdTouchPattern.Strided, 2, 0)]
    public void EveryPageIsTouchedOnce(UffdTouchPattern pattern, int threads, long count)
    {
        using var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand });
        using var low = new GuestRegionMmap(new MmapRegionBuilder(400 * 4096).Build(), new GuestAddress(0));
        using var high = new GuestRegionMmap(new MmapRegionBuilder(600 * 4096).Build(), new GuestAddress(0x10000000));
        var memory = GuestMemoryMmap.FromRegions([low, high]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        var result = UffdTouch.Run(memory, new UffdTouchOptions { Pattern = pattern, ThreadCount = threads, Count = count, Stride = 7 });
        var touched = count == 0 ? Pages : count;
        Assert.Equal((touched, 0L), (result.TouchCount, result.ErrorCount));
        Host.Until(() => handler.FaultCount >= touched);
        Assert.Equal(touched, handler.FaultCount);
        Assert.InRange(result.FaultCount, 1, touched);
        Assert.True(result.LatencyP50 <= result.LatencyP99 && result.LatencyP99 <= result.LatencyMax && result.LatencyMax <= result.Duration);
        // Nothing is missing any more.
        Assert.InRange(UffdTouch.Run(memory, new UffdTouchOptions { Pattern = pattern, ThreadCount = threads, Count = count, Stride = 7 }).FaultCount, 0, touched / 5);
        Assert.Equal(touched, handler.FaultCount);
    }

    [UffdFact]
    public void ABalloonTakesPagesOfSeveralRegions()
    {
        using var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"] });
        using var low = new GuestRegionMmap(new MmapRegionBuilder(400 * 4096).Build(), new GuestAddress(0));
        using var high = new GuestRegionMmap(new MmapRegionBuilder(600 * 4096).Build(), new GuestAddress(400 * 4096));
        var memory = GuestMemoryMmap.FromRegions([low, high]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        memory.Discard(new GuestAddress(390 * 4096), 20 * 4096);
        var page = new byte[4096];
        var expected = new byte[4096];
        for (var i = 380; i < 420; i++)
        {
            memory.ReadExact(new GuestAddress((ulong)i * 4096), page);
            if (i is >= 390 and < 410) expected.AsSpan().Clear();
            else TestFolder.Fill(expected, i);
            Assert.True(expected.AsSpan().SequenceEqual(page), $"page {i}");
        }

        Assert.Equal((2L, 20L), (handler.GetFigures().RemoveCount, handler.GetFigures().RemovedPageCount));
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Assert.Throws<GuestMemoryException>(() => memory.Discard(new GuestAddress(999 * 4096), 8192)).Error);
        Assert.Throws<SyscallException>(() => memory.Discard(new GuestAddress(1), 4096));
    }

    [CompilerFact]
    public void TheCHandlerIsConnectedToAlike()
    {
        var program = Compiler.Compile(Path.Combine(AppContext.BaseDirectory, "Userfault", "uffd-handler.c"), _folder["handler"]);
        using var process = System.Diagnostics.Process.Start(new System.Diagnostics.ProcessStartInfo(program, [_folder["c.sock"], _folder["image"], "--mode", "poll"]) { UseShellExecute = false, RedirectStandardError = true })!;
        Host.Until(() => Host.IsListenedAt(_folder["c.sock"]));
        using (var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0)))
        {
            var memory = GuestMemoryMmap.FromRegions([region]);
            UffdRegistration.Connect(_folder["c.sock"], memory);
            Assert.Equal(Pages, UffdTouch.Run(memory, new UffdTouchOptions { Pattern = UffdTouchPattern.Random, ThreadCount = 2 }).TouchCount);
            memory.Discard(new GuestAddress(0), 4096);
            var page = new byte[4096];
            memory.ReadExact(new GuestAddress(0), page);
            Assert.DoesNotContain(page, value => value != 0);
        }

        Assert.True(process.WaitForExit(Host.Patience));
        Assert.Contains("\"faults\":1001", process.StandardError.ReadToEnd(), StringComparison.Ordinal);
    }

    [UffdFact]
    public void AHandlerThatIsGoneEndsTheTouches()
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        using (var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand }))
        {
            UffdRegistration.Connect(handler.SocketPath, memory);
            Assert.Equal(5, UffdTouch.Run(memory, new UffdTouchOptions { Count = 5 }).TouchCount);
        }

        Assert.Equal(GuestMemoryError.HandlerGone, Assert.Throws<GuestMemoryException>(() => UffdTouch.Run(memory, new UffdTouchOptions())).Error);
        using var cancellation = new CancellationTokenSource(TimeSpan.Zero);
        Assert.ThrowsAny<OperationCanceledException>(() => UffdTouch.Run(memory, new UffdTouchOptions(), cancellation.Token));
    }
}
