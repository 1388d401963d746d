using System.Globalization;

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
        AssertPages(memory, 0, 0, 8);
        var killed = new HashSet<int>();
        var isRecovering = false;
        var waiting = Task.Run(() => AssertPages(memory, 8 * 4096, 8, 1));
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
        Assert.True(waiting.Wait(TimeSpan.FromSeconds(30)), $"{handler.State}: {handler.Error}");
        AssertPages(memory, 9 * 4096, 9, 55);
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
        AssertPages(memory, 0, 0, 4);
        var worker = handler.WorkerProcessId;
        Assert.True(Signal(worker, 19));
        var touching = Task.Run(() => AssertPages(memory, 4 * 4096, 4, 12));
        Assert.True(touching.Wait(TimeSpan.FromSeconds(60)), $"{handler.State}: {handler.Error}");
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
        AssertPages(memory, 0, 0, 4);
        Host.Until(() => Children(handler.ProcessId).Length == 2);
        var (first, spare) = (handler.WorkerProcessId, Children(handler.ProcessId).Single(child => child != handler.WorkerProcessId));
        Assert.True(Signal(first, 9));
        AssertPages(memory, 4 * 4096, 4, 12);
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
        AssertPages(memory, 0, 0, 4);
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
        using var vm = UffdHost.KeptVm.Create(1, connection, handover!);
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

    private static int[] Children(int process)
    {
        try
        {
            return [.. File.ReadAllText($"/proc/{process}/task/{process}/children").Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(static text => int.Parse(text, CultureInfo.InvariantCulture))];
        }
        catch (IOException)
        {
            return [];
        }
    }
}
