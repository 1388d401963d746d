namespace GuestMemory.Core.Tests;

/// <content>Figures are exact at the moments that matter: a VM's end, a complete restore, and the handler's end.</content>
public sealed partial class HostTests
{
    private string Hold => _folder["hold"];

    /// <summary>The supervisor sees the end of a VM while the worker still counts the fault that it has just answered.</summary>
    [UffdFact]
    public void TheLastFaultOfAVmThatEndsIsCounted()
    {
        var (handler, memory) = ServeWithoutCounting();
        memory.Regions[0].Dispose();
        Host.Until(() => handler.ConnectionCount == 0);
        Assert.Equal(0, handler.FaultCount);
        File.WriteAllText(Hold, "");
        Host.Until(() => handler.FaultCount == 1);
        Assert.Equal(4096, handler.ByteCount);
    }

    /// <summary>The worker dies before it has counted; the VM that ended is released all the same.</summary>
    [UffdFact]
    public void AVmThatEndsWithItsWorkerIsReleased()
    {
        var (handler, memory) = ServeWithoutCounting();
        memory.Regions[0].Dispose();
        Host.Until(() => handler.ConnectionCount == 0);
        Assert.Contains("uffd-state", File.ReadAllText($"/proc/{handler.ProcessId}/maps"), StringComparison.Ordinal);
        Assert.True(Signal(handler.WorkerProcessId, 9));
        Host.Until(() => handler.WorkerCount == 2 && !File.ReadAllText($"/proc/{handler.ProcessId}/maps").Contains("uffd-state", StringComparison.Ordinal));
    }

    [UffdFact]
    public void WhatIsRestoredHasAllItsFaultsCounted()
    {
        var (handler, memory) = ServeWithoutCounting();
        Assert.False(handler.GetFigures().IsRestored);
        File.WriteAllText(Hold, "");
        Host.Until(() => handler.GetFigures().IsRestored);
        Assert.Equal((1L, 4096L), (handler.FaultCount, handler.ByteCount));
    }

    [UffdFact]
    public void TheLastFiguresHaveWhatTheWorkerCountedBeforeItEnded()
    {
        var (handler, _) = ServeWithoutCounting(pages: 2);
        var stopping = Task.Run(handler.Stop);
        Host.Until(() => !File.Exists(handler.SocketPath));
        File.WriteAllText(Hold, "");
        stopping.GetAwaiter().GetResult();
        Assert.Equal((UffdHandlerState.Stopped, 1L, 1), (handler.State, handler.FaultCount, handler.AbandonedCount));
    }

    /// <summary>A handler that listens and does not answer yet is no failed start: the caller has it, and can stop it.</summary>
    [UffdFact]
    public void AHandlerThatIsSlowToAnswerHasStarted()
    {
        var handler = WithDebug("stop-when-started", () => Start(1));
        Assert.Equal(handler.ProcessId, handler.Id);
        // It stops itself some time after its report; a signal that comes earlier would be lost.
        Host.Until(() => TestProcess.State(handler.ProcessId) is 'T');
        Assert.True(Signal(handler.ProcessId, 18));
        Assert.Equal(UffdHandlerState.Listening, handler.State);
        handler.Stop();
        Host.Until(() => Directory.GetFileSystemEntries(runtime.Folder.Path).Length == 0);
    }

    /// <summary>A handler whose worker counts no fault as long as <see cref="Hold"/> has content, and memory whose first page it has answered.</summary>
    private (UffdHandler Handler, GuestMemoryMmap Memory) ServeWithoutCounting(int pages = 1)
    {
        // A worker opens no file once it serves.
        File.WriteAllText(Hold, "");
        var handler = WithDebug($"hold-counts={Hold}", () => Start(2));
        File.WriteAllText(Hold, "hold");
        var memory = Memory((0, pages));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 1);
        return (handler, memory);
    }

    private static UffdHandler WithDebug(string? setting, Func<UffdHandler> start)
    {
        Environment.SetEnvironmentVariable(UffdDebug.Variable, setting);
        try
        {
            return start();
        }
        finally
        {
            Environment.SetEnvironmentVariable(UffdDebug.Variable, null);
        }
    }
}
