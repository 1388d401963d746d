using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>A handler that is handed to another program while it serves, with this process as its VMM.</summary>
[Collection(RuntimeFolder.Name)]
public sealed partial class UpgradeTests(RuntimeFolder runtime) : IDisposable
{
    private readonly TestFolder _folder = new();
    private readonly List<GuestRegionMmap> _regions = [];

    public void Dispose()
    {
        foreach (var region in _regions) region.Dispose();
        runtime.StopAll();
        _folder.Dispose();
    }

    [UffdFact]
    public void TheSocketStaysAndTheOldProcessLeavesNothing()
    {
        var handler = Start(4);
        UffdRegistration.Connect(handler.SocketPath, Memory(4));
        Host.Until(() => handler.ConnectionCount == 1);
        HashSet<int> processes = [handler.ProcessId];
        for (var round = 1; round <= 2; round++)
        {
            handler.Upgrade(TimeSpan.FromSeconds(60));
            Assert.True(processes.Add(handler.ProcessId));
            Assert.Equal((1, round + 1), (handler.ConnectionCount, handler.WorkerCount));
            Assert.Same(handler, Host.OnlyHandler());
        }

        // A new VM comes to the same socket.
        var other = Memory(4);
        UffdRegistration.Connect(handler.SocketPath, other);
        TestFolder.AssertPages(other, 0, 4);
        Host.Until(() => processes.Where(process => process != handler.ProcessId).All(static process => !IsAlive(process)));
        AssertFiles(handler, "log", "sock");
        handler.Stop();
        Assert.False(File.Exists(handler.SocketPath));
        Host.Until(() => Directory.GetFiles(runtime.Folder.Path).Length == 0);
    }

    [UffdFact]
    public void FiguresAndConnectionsGoOn()
    {
        _folder.WriteImage("image", 64);
        var handler = UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand, MetricsPort = 0, TrackDirty = true });
        var gone = Memory(64);
        UffdRegistration.Connect(handler.SocketPath, gone);
        TestFolder.AssertPages(gone, 0, 16);
        gone.Regions[0].Dispose();
        Host.Until(() => handler.ConnectionCount == 0 && handler.FaultCount == 16);
        var memory = Memory(64);
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 8);
        memory.Write(new GuestAddress(2 * 4096), [1]);
        // The write is a fault too.
        Host.Until(() => handler.FaultCount == 25);
        var (port, longest, before) = (handler.MetricsPort, handler.LatencyMax, handler.ProcessId);
        // One that waits for the end, and one that has taken marks and has not confirmed them.
        var waiting = Task.Run(() => handler.Wait(Host.Patience));
        using var taker = UffdControlClient.TryConnect(UffdRuntimeFolder.SocketOf(runtime.Folder.Path, handler.ProcessId), out _)!;
        taker.AskForFile(new UffdControlRequest { Request = UffdControlRequest.Dirty, Clear = true }, CancellationToken.None, out var told)!.Dispose();

        handler.Upgrade(TimeSpan.FromSeconds(60));

        Assert.NotEqual(before, handler.ProcessId);
        Assert.Equal((25L, 24L * 4096, 1, 2, longest), (handler.FaultCount, handler.ByteCount, handler.ConnectionCount, handler.TotalConnectionCount, handler.LatencyMax));
        Assert.Equal((port, 2), (handler.MetricsPort, handler.WorkerCount));
        using (var http = new HttpClient())
            Assert.Contains("guestmemory", http.GetStringAsync(new Uri($"http://127.0.0.1:{port}/metrics"), CancellationToken.None).GetAwaiter().GetResult(), StringComparison.Ordinal);
        _ = taker.Ask(new UffdControlRequest { Request = UffdControlRequest.Cleared, Number = told.Number }, CancellationToken.None);
        Assert.Equal(0, handler.GetDirtyBitmaps(clear: true)[0].DirtyCount);
        memory.Write(new GuestAddress(3 * 4096), [1]);
        Assert.Equal(1, handler.GetDirtyBitmaps()[0].DirtyCount);
        Assert.False(waiting.IsCompleted);
        handler.Stop();
        Assert.True(waiting.Wait(Host.Patience));
        Assert.True(waiting.Result);
        Assert.Equal(UffdHandlerState.Stopped, handler.State);
    }

    /// <summary>What lies at the path of the image by now is not what VMs were given; and a layer is a part of it.</summary>
    [UffdFact]
    public void TheNewProgramHasTheImageThatVmsWereGiven()
    {
        var handler = Start(16);
        var memory = Memory(16);
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 4);
        File.Move(_folder.WriteImage("other", 16, firstNumber: 1000), _folder["image"], overwrite: true);
        handler.Upgrade(TimeSpan.FromSeconds(60));
        TestFolder.AssertPages(memory, 4, 12);
        Assert.Contains("another file lies at", handler.Error, StringComparison.Ordinal);
    }

    /// <summary>What was touched before and after stands in the record once each, in the order of the touches.</summary>
    [UffdFact]
    public void ARecordGoesOn()
    {
        _folder.WriteImage("image", 16);
        var handler = UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand, RecordPath = _folder["record"] });
        var memory = Memory(16);
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 9, 1);
        TestFolder.AssertPages(memory, 2, 1);
        // A page is there before it is noted.
        Host.Until(() => handler.FaultCount == 2);
        handler.Upgrade(TimeSpan.FromSeconds(60));
        TestFolder.AssertPages(memory, 7, 1);
        memory.Regions[0].GetMmapRegion().Discard(9 * 4096, 4096);
        memory.ReadExact(new GuestAddress(9 * 4096), new byte[4096]);
        Host.Until(() => handler.FaultCount == 4);
        handler.Stop();
        Assert.Equal([9, 2, 7], TouchRecord.Load(_folder["record"], 16 * 4096));
    }

    /// <summary>A VM has the name and the OnError that it was given, also in the new process.</summary>
    [UffdFact]
    public void WhatWasSetOfAVmStays()
    {
        var handler = Start(16);
        var memory = Memory(16);
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 4);
        var vm = Assert.Single(handler.GetVms());
        vm.Rename("web");
        vm.SetOnError(UffdOnError.Kill);
        handler.Upgrade(TimeSpan.FromSeconds(60));
        Assert.Equal(("web", UffdOnError.Kill, vm.Id), Assert.Single(handler.GetVms()) is var now ? (now.Name, now.OnError, now.Id) : default);
        TestFolder.AssertPages(memory, 4, 12);
    }

    /// <summary>A VM whose service is to end, and whose worker has not done so yet, has it ended by the new program.</summary>
    [UffdFact]
    public void AVmThatIsToBeStoppedIsStoppedByTheNewProgram()
    {
        var handler = Start(16);
        var memory = Memory(16);
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 4);
        // A worker that stands still does nothing of what it is told.
        Assert.True(Signal(handler.WorkerProcessId, 19));
        using var cancellation = new CancellationTokenSource();
        var stopping = Task.Run(() => Assert.Single(handler.GetVms()).Stop(UffdOnError.Poison, cancellation.Token));
        Host.Until(() => File.ReadAllText(UffdRuntimeFolder.LogOf(UffdRuntimeFolder.SocketOf(runtime.Folder.Path, handler.ProcessId))).Contains("is stopped as ordered", StringComparison.Ordinal));
        handler.Upgrade(TimeSpan.FromSeconds(60));
        Assert.True(stopping.Wait(Host.Patience));
        Host.Until(() => handler.ConnectionCount == 0);
        TestFolder.AssertPages(memory, 0, 4);
        Assert.ThrowsAny<GuestMemoryException>(() => memory.ReadExact(new GuestAddress(8 * 4096), new byte[8]));
    }

    [UffdFact]
    public void AHandlerInThisProcessHasNoOtherToGoTo()
    {
        _folder.WriteImage("image", 1);
        using var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"] });
        Assert.Equal(GuestMemoryError.UpgradeFailed, Assert.Throws<GuestMemoryException>(() => handler.Upgrade(TimeSpan.FromSeconds(1))).Error);
        Assert.Equal(UffdHandlerState.Listening, handler.State);
    }

    /// <summary>Of the handler's process there is each of these, and nothing else of anything.</summary>
    private void AssertFiles(UffdHandler handler, params string[] kinds) => Assert.Equal(
        kinds.Select(kind => Path.Combine(runtime.Folder.Path, string.Create(CultureInfo.InvariantCulture, $"{handler.ProcessId}.{kind}"))),
        Directory.GetFileSystemEntries(runtime.Folder.Path).Order(StringComparer.Ordinal), StringComparer.Ordinal);

    private UffdHandler Start(int pages, UffdStrategy strategy = UffdStrategy.OnDemand)
    {
        _folder.WriteImage("image", pages);
        return UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = strategy });
    }

    private GuestMemoryMmap Memory(int pages)
    {
        var region = new GuestRegionMmap(new MmapRegionBuilder((ulong)pages * 4096).Build(), new GuestAddress(0));
        _regions.Add(region);
        return GuestMemoryMmap.FromRegions([region]);
    }
}
