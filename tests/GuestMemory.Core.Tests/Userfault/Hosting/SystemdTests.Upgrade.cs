using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <content>What a service manager's reload, restart and stop do to the VMs.</content>
public sealed partial class SystemdTests
{
    /// <summary>ExecReload=: the program at the path now takes over, the manager is told of it, and goes on to keep the descriptors.</summary>
    [UffdFact]
    public void AReloadHandsTheVmsToTheNewProgram()
    {
        _folder.WriteImage("image", 64);
        using var manager = new ServiceManager(_folder["notify"]) { Watchdog = TimeSpan.FromMilliseconds(400) };
        var first = StartReady(manager);
        var memory = Memory(64);
        UffdRegistration.Connect(_folder["h.sock"], memory);
        TestFolder.AssertPages(memory, 0, 16);
        Assert.True(manager.WasTold(_ => manager.Kept.Count == 8));
        var kept = manager.KeptNames;
        manager.Told.Clear();

        var reloading = Task.Run(() => Request("upgrade", first));
        Assert.True(manager.WasTold(text => text.StartsWith("MAINPID=", StringComparison.Ordinal), seconds: 60), manager.Log);
        Assert.Equal((0, ""), reloading.GetAwaiter().GetResult());

        var handler = Host.OnlyHandler();
        _processes.Add(handler.ProcessId);
        Assert.NotEqual(first, handler.ProcessId);
        Assert.Equal((1, 1), (handler.ConnectionCount, handler.TotalConnectionCount));
        TestFolder.AssertPages(memory, 16, 16);
        Assert.True(manager.WasTold(text => text == "READY=1"), manager.Log);
        // All that comes after it comes from the new process.
        Assert.Equal($"MAINPID={handler.ProcessId}", Assert.Single(manager.Told, text => text.StartsWith("MAINPID=", StringComparison.Ordinal)));
        Assert.True(manager.Told.IndexOf($"MAINPID={handler.ProcessId}") < manager.Told.IndexOf("READY=1"));
        using (var old = Pidfd.TryOpen(first, out _)!) Host.Until(() => Pidfd.TryReap(old) == "exit code 0");
        manager.Told.Clear();
        Assert.True(manager.WasTold(_ => manager.Told.Count(text => text == "WATCHDOG=1") >= 2));
        Assert.Equal(kept, manager.KeptNames);

        // What is kept is what the new process has.
        ServiceManager.Kill(handler.ProcessId);
        manager.Told.Clear();
        StartReady(manager);
        TestFolder.AssertPages(memory, 32, 32);
        foreach (var region in _regions) region.Dispose();
        Host.OnlyHandler().Stop();
    }

    [UffdFact]
    public void AReloadThatFailsSaysSoAndChangesNothing()
    {
        using var manager = new ServiceManager(_folder["notify"]);
        _folder.WriteImage("image", 64);
        var first = StartReady(manager);
        var memory = Memory(64);
        UffdRegistration.Connect(_folder["h.sock"], memory);
        TestFolder.AssertPages(memory, 0, 16);
        using (var file = File.Open(_folder["image"], FileMode.Open, FileAccess.Write, FileShare.ReadWrite)) file.Write(new byte[4096]);
        var (code, errors) = Request("upgrade", first);
        Assert.Equal(1, code);
        Assert.Contains("UpgradeFailed: The new program cannot take over: ImageChanged: The memory image or layer", errors, StringComparison.Ordinal);
        TestFolder.AssertPages(memory, 16, 48);
        Assert.DoesNotContain(manager.Told, text => text.StartsWith("MAINPID=", StringComparison.Ordinal));
        Assert.Equal((1, "HandlerNotFound: "), Request("upgrade", Environment.ProcessId) is var (other, text) ? (other, text[..17]) : default);
    }

    /// <summary>A restart ends the service and starts it again; SIGTERM alone does not say that no start will follow.</summary>
    [UffdFact]
    public void ARestartFindsTheVmsInTheStore()
    {
        _folder.WriteImage("image", 64);
        using var manager = new ServiceManager(_folder["notify"]);
        var first = StartReady(manager);
        var memory = Memory(64);
        UffdRegistration.Connect(_folder["h.sock"], memory);
        TestFolder.AssertPages(memory, 0, 16);
        Assert.True(manager.WasTold(_ => manager.Kept.Count == 8));
        var kept = manager.KeptNames;
        manager.Told.Clear();

        End(first, 15);
        Assert.True(manager.WasTold(text => text == "STOPPING=1"), manager.Log);
        Assert.Equal(kept, manager.KeptNames);
        // A VM that touches a page, and a VMM that connects, now wait.
        var touching = Task.Run(() => TestFolder.AssertPages(memory, 16, 48));
        var other = Memory(64);
        UffdRegistration.Connect(_folder["h.sock"], other);
        manager.Told.Clear();

        StartReady(manager);
        Assert.True(touching.Wait(Host.Patience));
        TestFolder.AssertPages(other, 0, 64);
        var handler = Host.OnlyHandler();
        Assert.Equal(2, handler.ConnectionCount);
        foreach (var region in _regions) region.Dispose();
        handler.Stop();
        Assert.False(File.Exists(_folder["h.sock"]));
    }

    /// <summary>ExecStop= where no start follows: no handler will serve the VMs, so OnError is applied.</summary>
    [UffdFact]
    public void AFinalStopPoisonsWhatHasNotCome()
    {
        _folder.WriteImage("image", 64);
        using var manager = new ServiceManager(_folder["notify"]);
        var first = StartReady(manager);
        var memory = Memory(64);
        var region = memory.Regions[0];
        using var peer = new RawPeer(_folder["h.sock"], region);
        peer.Send([new GuestRegionUffdMapping(region.GetHostAddress(default), 64 * 4096, 0, 4096)]);
        TestFolder.AssertPages(memory, 0, 16);
        Assert.True(manager.WasTold(_ => manager.Kept.Count == 8));
        using var process = Pidfd.TryOpen(first, out _)!;
        Assert.Equal((0, ""), Request("stop", first));
        Host.Until(() => Pidfd.TryReap(process) == "exit code 0");
        Assert.True(manager.WasTold(_ => !manager.KeptNames.Contains("vm-", StringComparison.Ordinal)), manager.KeptNames);
        using var limit = new CancellationTokenSource(Host.Patience);
        TestFolder.AssertPages(memory, 0, 16);
        Assert.Throws<GuestMemoryException>(() => memory.ReadExact(new GuestAddress(20 * 4096), new byte[8].AsMemory(), limit.Token));
        Assert.False(limit.IsCancellationRequested);
    }

    /// <summary>Also where pages cannot be poisoned, on kernels before 6.6.</summary>
    [CompilerTheory]
    [InlineData("Kill", false)]
    [InlineData("Poison", true)]
    public void AFinalStopKillsWhereThatIsOrdered(string onError, bool withoutPoison)
    {
        _folder.WriteImage("image", 256);
        using var manager = new ServiceManager(_folder["notify"]);
        var first = 0;
        void StartHandler() => first = Start(manager, "--on-error", onError);
        if (withoutPoison) Sandbox.WithoutPoison(StartHandler);
        else StartHandler();
        Assert.True(manager.WasTold(text => text.Contains("READY=1", StringComparison.Ordinal)), manager.Log);
        var client = Compiler.Compile(Path.Combine(AppContext.BaseDirectory, "Userfault", "uffd-client.c"), _folder["client"]);
        using var vmm = Process.Start(new ProcessStartInfo(client, [_folder["h.sock"], "1", "--image", _folder["image"], "--touches", "10", "--stay"]) { UseShellExecute = false, RedirectStandardOutput = true })!;
        _processes.Add(vmm.Id);
        Assert.Contains("\"bad\":0}", vmm.StandardOutput.ReadLine(), StringComparison.Ordinal);
        using var process = Pidfd.TryOpen(first, out _)!;
        Assert.Equal((0, ""), Request("stop", first));
        Assert.True(vmm.WaitForExit(Host.Patience));
        Assert.Equal(128 + 9, vmm.ExitCode);
        Host.Until(() => Pidfd.TryReap(process) is not null);
    }

    /// <summary>As a unit file has the handler's program ask the one that runs.</summary>
    private static (int Code, string Errors) Request(string request, int process)
    {
        var command = UffdHostProcess.CommandLine();
        using var asking = Process.Start(new ProcessStartInfo(command[0], [.. command.Skip(1), request, process.ToString(System.Globalization.CultureInfo.InvariantCulture)]) { UseShellExecute = false, RedirectStandardError = true })!;
        var errors = asking.StandardError.ReadToEnd();
        Assert.True(asking.WaitForExit(Host.Patience));
        return (asking.ExitCode, errors);
    }
}
