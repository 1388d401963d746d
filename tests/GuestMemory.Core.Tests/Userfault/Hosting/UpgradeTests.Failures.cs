using System.Diagnostics;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Tests;

/// <content>New programs that cannot take over, and old ones that die meanwhile.</content>
public sealed partial class UpgradeTests
{
    /// <summary>The handler's program as a shell runs it, with its arguments.</summary>
    private static string Real => string.Join(' ', UffdHostProcess.CommandLine().Select(static part => $"'{part}'")) + " \"$@\"";

    /// <summary>What answers nothing, or something else, or ends, is no program to hand VMs to.</summary>
    [UffdTheory]
    [InlineData(null, "there is no file")]
    [InlineData("exit 3", "it has ended")]
    [InlineData("sleep 1000", "it did not answer within 1 s")]
    [InlineData("printf nonsense >&3; sleep 1000", "is wrong")]
    [InlineData("REAL --no-such-option", "ValueNotSupported: Wrong arguments: there is no option --no-such-option")]
    [InlineData("REAL --socket-path /another", "ValueNotSupported: Wrong arguments: --socket-path is given twice")]
    public void WhatIsNoHandlerGetsNoVm(string? script, string why)
    {
        var (handler, memory) = StartWithVm();
        var (worker, descriptors) = (handler.WorkerProcessId, Descriptors(handler.ProcessId));
        var error = Refused(handler, script is null ? [_folder["none"]] : Program(script.Replace("REAL", "exec " + Real, StringComparison.Ordinal)), milliseconds: script?.StartsWith("sleep", StringComparison.Ordinal) == true ? 1000 : 60000);
        Assert.Contains(why, error.Message, StringComparison.Ordinal);
        Assert.Equal((worker, 1), (handler.WorkerProcessId, handler.WorkerCount));
        AssertUntouched(handler, memory, descriptors);
    }

    /// <summary>A file that may not be executed.</summary>
    [UffdFact]
    public void WhatCannotBeStartedGetsNoVm()
    {
        var (handler, memory) = StartWithVm();
        var descriptors = Descriptors(handler.ProcessId);
        File.WriteAllText(_folder["file"], "");
        Assert.Contains("it could not be started", Refused(handler, [_folder["file"]]).Message, StringComparison.Ordinal);
        AssertUntouched(handler, memory, descriptors);
    }

    /// <summary>A program with another layout of what it must read refuses the VM, and then it does not get the others either.</summary>
    [UffdFact]
    public void AStateOfAnotherLayoutIsRefused()
    {
        var (handler, memory) = StartWithVm();
        var (worker, descriptors) = (handler.WorkerProcessId, Descriptors(handler.ProcessId));
        WriteLayout(handler.ProcessId, UffdVmState.Version + 8);
        Assert.Contains($"StateMismatch: The state of the VM has layout {UffdVmState.Version + 8}", Refused(handler, UffdHostProcess.CommandLine()).Message, StringComparison.Ordinal);
        WriteLayout(handler.ProcessId, UffdVmState.Version);
        Assert.Equal((worker, 1), (handler.WorkerProcessId, handler.WorkerCount));
        AssertUntouched(handler, memory, descriptors);
        handler.Upgrade(TimeSpan.FromSeconds(60));
        TestFolder.AssertPages(memory, 0, 64);
    }

    /// <summary>At whatever step the new program dies, or hangs, the old one goes on; what its worker had not answered another answers.</summary>
    [UffdTheory]
    [InlineData("die-at-step=1")]
    [InlineData("die-at-step=2")]
    [InlineData("die-at-step=3")]
    [InlineData("die-at-step=4")]
    [InlineData("die-at-step=5")]
    [InlineData("stop-at-step=1")]
    [InlineData("stop-at-step=4")]
    [InlineData("stop-at-step=5")]
    public void WhereverTheNewProgramEndsTheOldOneGoesOn(string debug)
    {
        const int Pages = 8192;
        var clock = Stopwatch.StartNew();
        var handler = Start(Pages);
        // Enough for a start, which a hang makes last to the end: four of what this one took.
        var hang = (int)Math.Clamp(4 * clock.Elapsed.TotalMilliseconds, 2000, 8000);
        var memory = Memory(Pages);
        UffdRegistration.Connect(handler.SocketPath, memory);
        var touching = new Touching(memory, Pages);
        AwaitStableDescriptors(handler);
        var descriptors = Descriptors(handler.ProcessId);
        var error = Refused(handler, Program($"export {UffdDebug.Variable}={debug}; exec {Real}"), milliseconds: debug.StartsWith("stop", StringComparison.Ordinal) ? hang : 60000);
        Assert.Contains(debug.StartsWith("die", StringComparison.Ordinal) ? "it has ended" : "it did not answer", error.Message, StringComparison.Ordinal);
        touching.Join();
        AssertUntouched(handler, null, descriptors);
        handler.Upgrade(TimeSpan.FromSeconds(60));
        var other = Memory(8);
        UffdRegistration.Connect(handler.SocketPath, other);
        TestFolder.AssertPages(other, 0, 8);
    }

    /// <summary>Whenever the old supervisor is killed, its worker or the new program serves the VM.</summary>
    [UffdFact]
    public void WheneverTheOldProgramDiesTheVmIsServed()
    {
        const int Pages = 2048;
        _folder.WriteImage("image", Pages);
        for (var round = 0; round < 6; round++)
        {
            var handler = UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand });
            var memory = Memory(Pages);
            UffdRegistration.Connect(handler.SocketPath, memory);
            var touching = new Touching(memory, Pages);
            var before = handler.ProcessId;
            // Its third child is the new program.
            Host.Until(() => Children(before).Length == 2);
            var upgrading = Task.Run(() => Ask(before, UffdHostProcess.CommandLine(), 60000));
            Host.Until(() => Children(before).Length > 2 || !IsAlive(before));
            Thread.Sleep(Random.Shared.Next(200));
            var children = Children(before);
            Signal(before, 9);
            touching.Join();
            Host.Until(() => !IsAlive(before) && upgrading.IsCompleted);
            foreach (var region in _regions) region.Dispose();
            _regions.Clear();
            runtime.StopAll();
            // The worker that was left alone too.
            Host.Until(() => !Array.Exists(children, IsAlive));
            File.Delete(_folder["h.sock"]);
            foreach (var log in Directory.GetFiles(runtime.Folder.Path, "*.log")) File.Delete(log);
        }
    }

    /// <summary>The new program was about to have the VMs when the old one died: it takes them from the worker that is left.</summary>
    [UffdFact]
    public void ThePreparedProgramTakesTheVmsOfADeadOne()
    {
        var (handler, memory) = StartWithVm();
        var (before, worker) = (handler.ProcessId, handler.WorkerProcessId);
        var upgrading = Task.Run(() => Ask(before, Program($"export {UffdDebug.Variable}=stop-at-step=2; exec {Real}"), 60000));
        var successor = 0;
        Host.Until(() => (successor = Children(before).FirstOrDefault(static child => IsStopped(child))) != 0);
        // The old one has sent everything when it waits for the answer: it asks nothing of anybody then.
        Host.Until(() => !IsAnswering(before));
        Assert.True(Signal(before, 9));
        Host.Until(() => !IsAlive(before));
        Assert.True(IsAlive(worker));
        Assert.True(Signal(successor, 18));
        Host.Until(() => upgrading.IsCompleted && !IsAlive(worker) && UffdHandler.FindAll().Count == 1);
        TestFolder.AssertPages(memory, 0, 64);
        var now = Host.OnlyHandler();
        Assert.Equal((successor, 1, 1), (now.ProcessId, now.ConnectionCount, now.TotalConnectionCount));
        now.Stop();
    }

    /// <summary>One after the other, and no more than one at once.</summary>
    [UffdFact]
    public void ASecondUpgradeAtOnceIsRefused()
    {
        var (handler, memory) = StartWithVm();
        var before = handler.ProcessId;
        var hangs = Program("sleep 1000");
        var first = Task.Run(() => Assert.Throws<GuestMemoryException>(() => Ask(before, hangs, 3000)));
        Host.Until(() => Children(before).Length == 3);
        Assert.Contains("another one is about to", Assert.Throws<GuestMemoryException>(() => Ask(before, UffdHostProcess.CommandLine(), 60000)).Message, StringComparison.Ordinal);
        Assert.Equal(GuestMemoryError.UpgradeFailed, first.GetAwaiter().GetResult().Error);
        Assert.Contains("the time for it is over", Assert.Throws<GuestMemoryException>(() => Ask(before, UffdHostProcess.CommandLine(), 0)).Message, StringComparison.Ordinal);
        handler.Upgrade(TimeSpan.FromSeconds(60));
        TestFolder.AssertPages(memory, 0, 64);
        Assert.NotEqual(before, handler.ProcessId);
    }

    /// <summary>A handler that is stopped takes the program along that was to take over.</summary>
    [UffdFact]
    public void AStopEndsTheNewProgramToo()
    {
        var (handler, _) = StartWithVm();
        var before = handler.ProcessId;
        var upgrading = Task.Run(() => Record.Exception(() => Ask(before, Program("sleep 1000"), 60000)));
        int[] children = [];
        Host.Until(() => (children = Children(before)).Length == 3);
        handler.Stop();
        Assert.Equal(UffdHandlerState.Stopped, handler.State);
        Assert.Contains("the handler ends", upgrading.GetAwaiter().GetResult()!.Message, StringComparison.Ordinal);
        Host.Until(() => !Array.Exists(children, IsAlive));
    }

    /// <summary>The caller of a program in the foreground takes its end for the end of the handler.</summary>
    [UffdFact]
    public void AProgramInTheForegroundIsNotReplaced()
    {
        _folder.WriteImage("image", 4);
        using var process = Process.Start(UffdHostProcess.CommandLine()[0], [.. UffdHostProcess.CommandLine().Skip(1), "--socket-path", _folder["h.sock"], "--memory-path", _folder["image"]]);
        Host.Until(() => UffdHandler.FindAll().Count == 1 || process.HasExited);
        var handler = Host.OnlyHandler();
        Assert.Contains("in the foreground", Refused(handler, UffdHostProcess.CommandLine()).Message, StringComparison.Ordinal);
        handler.Stop();
        Assert.True(process.WaitForExit(Host.Patience));
    }

    private static bool IsStopped(int process) => State(process) is 'T';

    /// <summary>Without the assemblies that .NET loads as it goes.</summary>
    private static int Descriptors(int process) => Directory.GetFiles($"/proc/{process}/fd").Count(static link => new FileInfo(link).LinkTarget?.EndsWith(".dll", StringComparison.Ordinal) == false);

    private static void WriteLayout(int process, uint version)
    {
        var link = Directory.GetFiles($"/proc/{process}/fd").First(static link => new FileInfo(link).LinkTarget?.Contains("memfd:uffd-state", StringComparison.Ordinal) == true);
        using SafeFileHandle state = File.OpenHandle(link, FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite);
        RandomAccess.Write(state, BitConverter.GetBytes(version), UffdVmState.HeaderOffset + 8);
    }

    /// <summary>Whether the process answers within a moment.</summary>
    private bool IsAnswering(int process)
    {
        using var socket = UnixSocket.Create(nonBlocking: false);
        if (UnixSocket.TryConnect(socket, UffdRuntimeFolder.SocketOf(runtime.Folder.Path, process)) != 0) return false;
        _ = UnixSocket.TrySend(socket, "{\"request\":\"status\"}\n"u8, []);
        Span<PollFd> entry = [new PollFd { fd = socket.Number, events = Poll.POLLIN }];
        return Poll.Wait(entry, 3000) > 0;
    }

    private (UffdHandler Handler, GuestMemoryMmap Memory) StartWithVm()
    {
        var handler = Start(64);
        var memory = Memory(64);
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 8);
        AwaitStableDescriptors(handler);
        return (handler, memory);
    }

    /// <summary>Waits until what the supervisor has open does not change any more: it has its VM, worker and spare worker, and has answered after the start of that.</summary>
    private static void AwaitStableDescriptors(UffdHandler handler)
    {
        Host.Until(() => Children(handler.ProcessId).Length == 2 && handler.ConnectionCount == 1);
        using var client = UffdControlClient.TryConnect(UffdRuntimeFolder.SocketOf(Environment.GetEnvironmentVariable(UffdRuntimeFolder.Variable)!, handler.ProcessId), out _)!;
        _ = client.Ask(new UffdControlRequest { Request = UffdControlRequest.Status }, CancellationToken.None);
        var open = Descriptors(handler.ProcessId);
        client.Dispose();
        Host.Until(() => Descriptors(handler.ProcessId) < open);
    }

    private IReadOnlyList<string> Program(string script)
    {
        File.WriteAllText(_folder["program"], $"#!/bin/sh\n{script}\n");
        Assert.Equal(0, FileStatus.TryChangeMode(_folder["program"], 0b111_000_000));
        return [_folder["program"]];
    }

    private UffdStatus? Ask(int process, IReadOnlyList<string> program, int milliseconds)
    {
        using var client = UffdControlClient.TryConnect(UffdRuntimeFolder.SocketOf(runtime.Folder.Path, process), out _)!;
        return client.Ask(new UffdControlRequest { Request = UffdControlRequest.Upgrade, Program = program, Timeout = milliseconds }, CancellationToken.None, TimeSpan.FromSeconds(100));
    }

    private GuestMemoryException Refused(UffdHandler handler, IReadOnlyList<string> program, int milliseconds = 60000)
    {
        var before = handler.ProcessId;
        var error = Assert.Throws<GuestMemoryException>(() => Ask(before, program, milliseconds));
        Assert.Equal(GuestMemoryError.UpgradeFailed, error.Error);
        Assert.Equal(before, handler.ProcessId);
        return error;
    }

    /// <summary>Of what was tried nothing is left but the error, and VMs are served and let in as before.</summary>
    private void AssertUntouched(UffdHandler handler, GuestMemoryMmap? memory, int descriptors)
    {
        if (memory is not null)
        {
            TestFolder.AssertPages(memory, 8, 56);
            Assert.Contains("The new program cannot take over", handler.Error, StringComparison.Ordinal);
        }

        Host.Until(() => handler.State == UffdHandlerState.Serving && Children(handler.ProcessId).Length == 2 && Descriptors(handler.ProcessId) <= descriptors);
        Assert.Equal(1, handler.ConnectionCount);
        AssertFiles(handler, "log", "sock");
        var other = Memory(8);
        UffdRegistration.Connect(handler.SocketPath, other);
        TestFolder.AssertPages(other, 0, 8);
        other.Regions[0].Dispose();
        Host.Until(() => handler.ConnectionCount == 1);
    }
}
