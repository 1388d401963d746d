namespace GuestMemory.Core.Tests;

/// <content>What waits for a disk is in no other's way: the filler, a fault, a page of a recorded set.</content>
public sealed partial class IsolationTests
{
    /// <summary>The filler waits for a disk with a piece of a VM whose end comes: others are served, others come, others end.</summary>
    [UffdFact]
    public void TheEndOfAVmThatTheFillerWaitsFor()
    {
        using var gate = new ManualResetEventSlim();
        var source = new TrickySource { Gate = gate };
        var handler = Start(source, UffdStrategy.Background, UffdOnError.Poison);
        try
        {
            var ending = Connect(handler, Pages);
            Host.Until(() => source.Waiting > 0);
            var quiet = Connect(handler, Pages);
            Host.Until(() => handler.ConnectionCount == 2);
            foreach (var region in ending.Regions) region.Dispose();
            Host.Until(() => handler.ConnectionCount == 1);
            TestFolder.AssertPages(quiet, 0, Pages / 2);
            var late = Connect(handler, Pages);
            TestFolder.AssertPages(late, 0, Pages);
            TestFolder.AssertPages(quiet, Pages / 2, Pages / 2);
            Assert.Equal((2, UffdHandlerState.Serving), (handler.ConnectionCount, handler.State));
            Assert.True(source.Waiting > 0);
        }
        finally
        {
            gate.Set();
            handler.Dispose();
        }
    }

    /// <summary>What a fault needs is not in memory: it waits, and other faults of the same VM are answered meanwhile.</summary>
    [UffdFact]
    public void AFaultThatWaitsForADisk()
    {
        using var gate = new ManualResetEventSlim();
        var source = new TrickySource { Gate = gate, ColdFrom = 16 };
        var handler = Start(source, UffdStrategy.OnDemand, UffdOnError.Poison);
        try
        {
            var memory = Connect(handler, Pages);
            var cold = Enumerable.Range(16, 24).Select(page => new Thread(() => _ = Record.Exception(() => ReadPage(memory, page)))).ToArray();
            foreach (var thread in cold) thread.Start();
            Host.Until(() => source.Waiting > 0 && handler.GetFigures().QueueDepth == cold.Length);
            TestFolder.AssertPages(memory, 0, 16);
            TestFolder.AssertPages(Connect(handler, Pages), 0, 16);
            Assert.All(cold, static thread => Assert.True(thread.IsAlive));
            gate.Set();
            Assert.All(cold, static thread => Assert.True(thread.Join(Host.Patience)));
            TestFolder.AssertPages(memory, 16, Pages - 16);
        }
        finally
        {
            gate.Set();
            handler.Dispose();
        }
    }

    /// <summary>The filler waits for a disk with the first page of a recorded set: a touch of another one waits a moment for its slice, and not for all of it.</summary>
    [UffdFact]
    public void APageOfASetThatDoesNotCome()
    {
        using var gate = new ManualResetEventSlim();
        var source = new TrickySource { Gate = gate };
        TouchRecord.Save(_folder["touches"], source.Length, [.. Enumerable.Range(0, Pages).Select(static page => (uint)page)]);
        var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = "", Strategy = UffdStrategy.Replay, ReplayPath = _folder["touches"] }, source);
        try
        {
            var memory = Connect(handler, Pages);
            Host.Until(() => source.Waiting > 0);
            TestFolder.AssertPages(memory, 1, Pages - 1);
            TestFolder.AssertPages(Connect(handler, Pages), 0, Pages);
            Assert.True(source.Waiting > 0);
            gate.Set();
            Host.Until(() => handler.GetFigures().IsRestored);
        }
        finally
        {
            gate.Set();
            handler.Dispose();
        }
    }
}
