namespace GuestMemory.Core.Tests;

/// <content>The image as the supervisor has opened it, whatever becomes of its path.</content>
public sealed partial class HostTests
{
    /// <summary>A VM never gets pages of a memory that is not its own: a file that takes the image's place is another image.</summary>
    [UffdFact]
    public void ASuccessorServesTheImageThatVmsWereGiven()
    {
        var handler = Start(16);
        var memory = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 4);
        File.Move(_folder.WriteImage("other", 16, firstNumber: 1000), _folder["image"], overwrite: true);
        TestFolder.AssertPages(memory, 4 * 4096, 4, 4);
        Assert.True(Signal(handler.WorkerProcessId, 9));
        TestFolder.AssertPages(memory, 8 * 4096, 8, 8);
        // A new VM too: all VMs of a handler have the same memory.
        var other = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, other);
        TestFolder.AssertPages(other, 0, 0, 16);
        Host.Until(() => (handler.State, handler.WorkerCount) == (UffdHandlerState.Serving, 2));
    }

    /// <summary>What was overwritten in place is gone; that VMs go on with half of each is what must not be.</summary>
    [UffdFact]
    public void AnImageThatWasOverwrittenIsNotServedByASuccessor()
    {
        var handler = Start(16);
        var memory = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 4);
        using (var file = File.Open(_folder["image"], FileMode.Open, FileAccess.Write, FileShare.ReadWrite)) file.Write(new byte[4096]);
        Assert.True(Signal(handler.WorkerProcessId, 9));
        Assert.True(handler.Wait(Host.Patience));
        Assert.Equal(UffdHandlerState.Failed, handler.State);
        Assert.Contains($"{_folder["image"]} was written to", handler.Error, StringComparison.Ordinal);
        foreach (var log in Directory.GetFiles(runtime.Folder.Path, "*.log")) File.Delete(log);
    }
}
