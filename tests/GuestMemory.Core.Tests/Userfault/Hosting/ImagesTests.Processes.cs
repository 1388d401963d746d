namespace GuestMemory.Core.Tests;

/// <content>Workers and supervisors that end, and programs that take over: a VM keeps its image.</content>
public sealed partial class ImagesTests
{
    [UffdFact]
    public void AVmKeepsItsImageWhenWorkersDie()
    {
        var handler = Start(process: true, "web");
        handler.AddImage(Image("db"));
        var (web, db) = (Connect("web"), Connect("db"));
        for (var round = 1; round <= 4; round++)
        {
            AssertImage(web, 0, round * 4);
            AssertImage(db, 1, round * 4);
            var (worker, count) = (handler.WorkerProcessId, handler.WorkerCount);
            Assert.True(Kill(worker));
            Host.Until(() => handler.WorkerCount > count && handler.State == UffdHandlerState.Serving);
        }

        AssertImage(web, 0);
        AssertImage(db, 1);
        // A worker that was started afterwards lets go of an image too.
        Regions[1].Dispose();
        Host.Until(() => handler.Images[1].ConnectionCount == 0);
        handler.Images[1].Remove();
        handler.AddImage(Image("db"));
        AssertImage(Connect("db"), 1);
    }

    [UffdFact]
    public void AVmKeepsItsImageThroughUpgrades()
    {
        var handler = Start(process: true);
        Folder.WriteImage("late", Pages, firstNumber: 2 * Far);
        handler.AddImage(Image("late"));
        var memories = new[] { Connect("web"), Connect("db"), Connect("late") };
        for (var i = 0; i < 3; i++) AssertImage(memories[i], i, 8);
        handler.Images[1].Remove(force: true);
        var faults = 0L;
        Host.Until(() => (faults = handler.FaultCount) == 24);
        for (var round = 0; round < 2; round++)
        {
            var before = handler.ProcessId;
            handler.Upgrade(TimeSpan.FromSeconds(60));
            Assert.NotEqual(before, handler.ProcessId);
            Assert.Equal(["web", "late"], handler.Images.Select(static image => image.Name), StringComparer.Ordinal);
            Assert.Equal([("web-1", "web"), ("late-3", "late")], handler.GetVms().Select(static vm => (vm.Name, vm.Image)));
            // Those of the image that was removed among them.
            Assert.Equal(faults, handler.FaultCount);
        }

        AssertImage(memories[0], 0);
        AssertImage(memories[2], 2);
        AssertImage(Connect("late"), 2);
        handler.AddImage(Image("db"));
        AssertImage(Connect("db"), 1);
        Assert.Null(handler.Error);
    }

    [UffdFact]
    public void AnImageThatWasOverwrittenFailsAlone()
    {
        var handler = Start(process: true);
        var (web, db) = (Connect("web"), Connect("db"));
        AssertImage(web, 0, 4);
        AssertImage(db, 1, 4);
        using (var file = File.Open(Folder["db"], FileMode.Open, FileAccess.Write, FileShare.ReadWrite)) file.Write(new byte[4096]);
        Assert.True(Kill(handler.WorkerProcessId));
        Host.Until(() => handler.Images[1].State == UffdImageState.Failed);
        Assert.Contains($"{Folder["db"]} was written to", handler.Images[1].Error, StringComparison.Ordinal);
        AssertImage(web, 0);
        AssertImage(Connect("web"), 0);
        // What has come stays, what has not is never of two memories.
        AssertImage(db, 1, 4);
        Assert.ThrowsAny<GuestMemoryException>(() => db.ReadExact(new GuestAddress(8 * 4096), new byte[8]));
        Assert.False(File.Exists(Folder["db.sock"]));
        AssertError(GuestMemoryError.UpgradeFailed, () => handler.Upgrade(TimeSpan.FromSeconds(60)));
        handler.Images[1].Remove(force: true);
        handler.AddImage(Image("db"));
        handler.Upgrade(TimeSpan.FromSeconds(60));
        AssertImage(web, 0);
    }

    /// <summary>More than find room in the channel to a worker at once.</summary>
    [UffdFact]
    public void AHandlerServesManyImages()
    {
        const int Count = 250;
        for (var i = 0; i < Count; i++) Folder.WriteImage($"vm-{i}", Pages, firstNumber: i * Far);
        var handler = Start(process: true, new UffdHandlerOptions { Strategy = UffdStrategy.OnDemand, Images = [.. Enumerable.Range(0, Count).Select(i => Image($"vm-{i}"))] });
        Assert.Equal(Count, handler.Images.Count);
        foreach (var number in new[] { 0, 100, Count - 1 })
        {
            var memory = Connect($"vm-{number}");
            AssertImage(memory, number, 4);
            var count = handler.WorkerCount;
            Assert.True(Kill(handler.WorkerProcessId));
            Host.Until(() => handler.WorkerCount > count);
            AssertImage(memory, number);
        }
    }

    private static bool Kill(int process)
    {
        using var descriptor = Pidfd.TryOpen(process, out _);
        return descriptor is not null && Pidfd.TrySignal(descriptor, 9) == 0;
    }
}
