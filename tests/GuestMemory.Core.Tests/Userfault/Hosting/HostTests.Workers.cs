using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <content>Workers that die again and again, or hang, and the spare one.</content>
public sealed partial class HostTests
{
    /// <summary>Whatever ends workers, and however often: when it stops, the VMs go on.</summary>
    [UffdFact]
    public void VmsAreNotGivenUpHoweverManyWorkersEndBeforeTheyAreReady()
    {
        const int Deaths = 12;
        var handler = Start(64);
        var memory = Memory((0, 64));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 8);
        var killed = new HashSet<int>();
        var isRecovering = false;
        var waiting = Task.Run(() => TestFolder.AssertPages(memory, 8 * 4096, 8, 1));
        Host.Until(() =>
        {
            // Faster than a worker is ready.
            for (var i = 0; i < 10 && killed.Count < Deaths; i++)
            {
                foreach (var child in Children(handler.ProcessId)) killed.UnionWith(Signal(child, 9) ? [child] : []);
            }

            isRecovering |= handler.State == UffdHandlerState.Recovering;
            return killed.Count >= Deaths;
        });
        Assert.True(isRecovering);
        Assert.True(waiting.Wait(Host.Patience), $"{handler.State}: {handler.Error}");
        TestFolder.AssertPages(memory, 9 * 4096, 9, 55);
        Host.Until(() => handler.State == UffdHandlerState.Serving);
        Assert.Equal((UffdHandlerState.Serving, 1), (handler.State, handler.ConnectionCount));
    }

    /// <summary>A worker that stands still, for whatever reason, is no worker.</summary>
    [UffdFact]
    public void AWorkerThatHangsIsReplaced()
    {
        var handler = Start(16);
        var memory = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 4);
        var worker = handler.WorkerProcessId;
        Assert.True(Signal(worker, 19));
        var touching = Task.Run(() => TestFolder.AssertPages(memory, 4 * 4096, 4, 12));
        Assert.True(touching.Wait(Host.Patience), $"{handler.State}: {handler.Error}");
        Host.Until(() => handler.WorkerCount == 2);
        Assert.NotEqual(worker, handler.WorkerProcessId);
        Assert.False(IsAlive(worker));
        Assert.Equal((UffdHandlerState.Serving, 2), (handler.State, handler.WorkerCount));
    }

    /// <summary>The next worker was started before it is needed.</summary>
    [UffdFact]
    public void ASpareWorkerTakesOver()
    {
        var handler = Start(16);
        var memory = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 4);
        Host.Until(() => Children(handler.ProcessId).Length == 2);
        var (first, spare) = (handler.WorkerProcessId, Children(handler.ProcessId).Single(child => child != handler.WorkerProcessId));
        Assert.True(Signal(first, 9));
        TestFolder.AssertPages(memory, 4 * 4096, 4, 12);
        // Figures are those of some milliseconds ago, and it takes no longer.
        Host.Until(() => handler.WorkerCount == 2);
        Assert.Equal((spare, 2), (handler.WorkerProcessId, handler.WorkerCount));
        // And there is another.
        Host.Until(() => Children(handler.ProcessId).Length == 2);
        // A spare one that ends is replaced too, and no VM notices.
        var next = Children(handler.ProcessId).Single(child => child != spare);
        Assert.True(Signal(next, 9));
        Host.Until(() => Children(handler.ProcessId) is [var one, var two] && one != next && two != next);
        Assert.Equal((spare, 2), (handler.WorkerProcessId, handler.WorkerCount));
    }

    /// <summary>A worker that becomes ready while the handler ends has no spare one started.</summary>
    [UffdFact]
    public void AHandlerIsStoppedAlsoWhileNoWorkerIsReady()
    {
        var handler = Start(16);
        var memory = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 4);
        foreach (var child in Children(handler.ProcessId)) Signal(child, 9);
        // The next one may be ready before this is seen.
        Host.Until(() => handler.State == UffdHandlerState.Recovering || handler.WorkerCount > 1);
        handler.Stop();
        Assert.Equal(UffdHandlerState.Stopped, handler.State);
        Host.Until(() => !IsAlive(handler.ProcessId));
    }

    /// <summary>Faults that wait while no process reads them are seen from outside.</summary>
    [UffdFact]
    public void FaultsThatNoWorkerReadsAreNoticed()
    {
        var memory = Memory((0, 16));
        var region = memory.Regions[0];
        using var listener = UnixListener.Open(_folder["h.sock"], null, force: false);
        using var peer = new RawPeer(_folder["h.sock"], region);
        peer.Send([new GuestRegionUffdMapping(region.GetHostAddress(default), 16 * 4096, 0, 4096)]);
        var socket = UnixSocket.TryAccept(listener.Socket, out _)!;
        var credentials = UnixSocket.PeerCredentials(socket);
        using var connection = new UffdConnection(socket, Pidfd.TryOfPeer(socket, credentials, out _)!, credentials, TimeSpan.FromSeconds(5));
        UffdHandover? handover = null;
        Host.Until(() => connection.TryReceive(out handover));
        using var vm = UffdHost.VmRecord.Create(1, "vm", connection, handover!);
        using var state = vm.State;
        for (var i = 0; i < 3; i++) Assert.Equal(0, vm.CountStalledLooks());
        var touching = Task.Run(() => memory.ReadExact(new GuestAddress(0), new byte[8]));
        Host.Until(() => vm.CountStalledLooks() > 0);
        Assert.Equal(2, vm.CountStalledLooks());
        vm.ForgetLooks();
        Assert.Equal(1, vm.CountStalledLooks());
        // As a worker that reads does.
        vm.State.Reads.Begin();
        vm.State.Reads.End();
        Assert.Equal(0, vm.CountStalledLooks());
        Assert.Equal(1, vm.CountStalledLooks());
        Userfaultfd.TryPoison(vm.Userfaultfd.Number, region.GetHostAddress(default), 4096);
        Assert.Throws<AggregateException>(() => touching.Wait());
    }

    /// <summary>The worker dies again and again, each time exactly between reading events and answering. SurvivalTests says what the variables are.</summary>
    [UffdFact]
    public void NoVmIsLostWhenItsWorkerDiesBetweenReadAndAnswer()
    {
        var rounds = Setting("GUESTMEMORY_CRASH_ROUNDS", 8);
        var pages = Setting("GUESTMEMORY_CRASH_MIB", 128) * 256;
        var handler = WithDebug($"die-after-read={Math.Max(20, pages / rounds)}", () => Start(pages));
        var memory = Memory((0x100000000, pages));
        UffdRegistration.Connect(handler.SocketPath, memory);
        new Touching(memory, pages).Join();
        var deaths = handler.WorkerCount - 1;
        Assert.True(deaths >= rounds / 2, $"only {deaths} workers died");
        Assert.Equal(UffdHandlerState.Serving, handler.State);
    }

    /// <summary>Memory that cannot be write-protected, since there is none, is refused by the worker; that is no reason to refuse others.</summary>
    [UffdFact]
    public void VmsThatCannotBeTakenAreInNobodysWay()
    {
        var handler = StartTracking(32, UffdStrategy.OnDemand);
        using var peer = Connect(handler, 32, isAsync: false);
        Host.Until(() => handler.ConnectionCount == 1);
        for (var i = 1; i <= 20; i++)
        {
            using var bad = new RawPeer(handler.SocketPath);
            bad.Send([new GuestRegionUffdMapping(4096, 4096, 0, 4096)]);
            // While the bad one is there, and when it is not any more.
            TestFolder.AssertPages(GuestMemoryMmap.FromRegions(_regions), (ulong)i * 4096, i, 1);
            Host.Until(() => handler.TotalConnectionCount == i + 1 && handler.ConnectionCount == 1);
        }

        TestFolder.AssertPages(GuestMemoryMmap.FromRegions(_regions), 0, 0, 32);
        Assert.Equal((21, 1, 1), (handler.TotalConnectionCount, handler.ConnectionCount, handler.WorkerCount));
    }

    /// <summary>Also beside a filler, what it has brought is no touch for the successor.</summary>
    [UffdTheory]
    [InlineData(UffdStrategy.OnDemand, 0)]
    [InlineData(UffdStrategy.Background, 4096)]
    public void ARecordGoesOnWhenTheWorkerDies(UffdStrategy strategy, ulong fillRate)
    {
        const int pages = 4096;
        _folder.WriteImage("image", pages);
        var handler = UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = strategy, RecordPath = _folder["record"], FillRate = fillRate });
        var first = Memory((0, pages));
        UffdRegistration.Connect(handler.SocketPath, first);
        Touch(first, 4009);
        Touch(first, 4002);
        first.Regions[0].Dispose();
        Host.Until(() => Record().Length == 2);
        Assert.Equal([4009, 4002], Record());
        var second = Memory((0, pages));
        UffdRegistration.Connect(handler.SocketPath, second);
        Touch(second, 4007);
        // A page is there before it is noted; what dies in between is not counted, and not recorded.
        Host.Until(() => handler.FaultCount == 3 && (fillRate == 0 || handler.GetFigures().Vms is [{ FillByteCount: > 0 }]));
        Assert.True(Signal(handler.WorkerProcessId, 9));
        Touch(second, 4004);
        second.Regions[0].Dispose();
        Host.Until(() => Record().Length == 4);
        Assert.Equal([4009, 4002, 4007, 4004], Record());

        uint[] Record() => TouchRecord.Load(_folder["record"], pages * 4096);

        static void Touch(GuestMemoryMmap memory, int page) => TestFolder.AssertPages(memory, (ulong)page * 4096, page, 1);
    }

    [UffdTheory]
    [InlineData("exec \"$@\" 2>/dev/full")]
    [InlineData("trap '' CHLD; exec \"$@\" 2>/dev/null")]
    public void HoweverItIsStartedItLosesNoVm(string command)
    {
        _folder.WriteImage("image", 16);
        var start = UffdHostProcess.Command();
        using var process = Process.Start("sh", ["-c", command, "sh", start.FileName, .. start.ArgumentList, "--socket-path", _folder["h.sock"], "--memory-path", _folder["image"], "--strategy", "OnDemand"]);
        Host.Until(() => UffdHandler.FindAll().Count == 1 || process.HasExited);
        var handler = Host.OnlyHandler();
        using (var bad = new RawPeer(handler.SocketPath)) bad.Send("nonsense", userfaultfds: 0);
        var memory = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 8);
        Assert.True(Signal(handler.WorkerProcessId, 9));
        TestFolder.AssertPages(memory, 8 * 4096, 8, 8);
        Host.Until(() => handler.WorkerCount == 2);
        handler.Stop();
        Assert.True(process.WaitForExit(Host.Patience));
        Assert.Equal(0, process.ExitCode);
    }
}
