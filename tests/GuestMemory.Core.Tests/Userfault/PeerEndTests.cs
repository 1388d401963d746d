using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <summary>
/// The end of a VM is that of its process, not that of its connection: Firecracker before PR #5122 (March 2025) closes its socket
/// right after the hand-over. And what becomes of a VMM that is to be killed.
/// </summary>
[Collection(RuntimeFolder.Name)]
public sealed class PeerEndTests(RuntimeFolder runtime) : IDisposable
{
    private const int Pages = 256;
    private readonly TestFolder _folder = new();

    public void Dispose()
    {
        foreach (var handler in UffdHandler.FindAll()) handler.Stop();
        foreach (var file in Directory.GetFiles(runtime.Folder.Path)) File.Delete(file);
        _folder.Dispose();
    }

    /// <summary>The message is that of Firecracker 1.10: without page_size, and page_size_kib in bytes.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void AVmmThatClosesItsSocketIsServed(bool process)
    {
        _folder.WriteImage("image", Pages);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        var handler = Start(process);
        using (var peer = new RawPeer(handler.SocketPath, region))
        {
            peer.Send($$"""[{"base_host_virt_addr":{{region.HostAddress}},"size":{{Pages * 4096}},"offset":0,"page_size_kib":4096}]""", 1);
            peer.CloseSocket();
            TestFolder.AssertPages(GuestMemoryMmap.FromRegions([region]), 0, 64);
            Assert.Equal(1, handler.ConnectionCount);
            if (process)
            {
                using var worker = Pidfd.TryOpen(handler.WorkerProcessId, out _)!;
                Assert.Equal(0, Pidfd.TryKill(worker));
                Host.Until(() => Pidfd.HasEnded(worker));
                TestFolder.AssertPages(GuestMemoryMmap.FromRegions([region]), 64, 64);
                Assert.Equal(1, handler.ConnectionCount);
            }
            else
            {
                Assert.Null(handler.Error);
            }
        }

        handler.Stop();
        handler.Dispose();
    }

    /// <summary>The kernel refuses such an address like a part of a huge page.</summary>
    [UffdTheory]
    [InlineData(0xffff_8000_0000_0000)]
    [InlineData(0x1000)]
    public void AConnectionWithoutMemoryBehindItIsTheEnd(ulong address)
    {
        _folder.WriteImage("image", Pages);
        using var handler = Start(process: false);
        using var peer = new RawPeer(handler.SocketPath);
        peer.Send([new GuestRegionUffdMapping(address, Pages * 4096, 0, 4096)]);
        Host.Until(() => handler.TotalConnectionCount == 1);
        peer.CloseSocket();
        Host.Until(() => handler.ConnectionCount == 0);
    }

    [CompilerFact]
    public void ItsVmEndsWithItsProcess() => EndsWithItsProcess();

    [CompilerFact]
    public void ItsVmEndsWithItsProcessBeforeLinux65() => Sandbox.WithoutPeerPidfd(EndsWithItsProcess);

    /// <summary>The thread that touches the page gets an error then, and the handler says why the VMM lives.</summary>
    [CompilerTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void AVmmThatMayNotBeKilledDoesNotHang(bool process)
    {
        UffdHandler? handler = null;
        Sandbox.WithoutSignals(() => handler = Start(process, UffdOnError.Kill, truncated: true));
        try
        {
            Assert.Equal(128 + 7, TouchWhatIsNotThere(handler!));
            Host.Until(() => Said(handler!, process) is var said && said.Contains("could not be killed (EPERM)", StringComparison.Ordinal) && said.Contains("is poisoned", StringComparison.Ordinal));
            Host.Until(() => handler!.ConnectionCount == 0);
        }
        finally
        {
            handler!.Stop();
            handler.Dispose();
        }
    }

    [CompilerTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void WherePagesCannotBePoisonedTheVmmIsKilled(bool process)
    {
        UffdHandler? handler = null;
        Sandbox.WithoutPoison(() => handler = Start(process, UffdOnError.Poison, truncated: true));
        try
        {
            Assert.Equal(128 + 9, TouchWhatIsNotThere(handler!));
            Host.Until(() => handler!.ConnectionCount == 0 && Said(handler, process).Contains("Linux 6.6", StringComparison.Ordinal));
        }
        finally
        {
            handler!.Stop();
            handler.Dispose();
        }
    }

    /// <summary>Of a process it is the log: a spare worker that starts when the image is shorter already has another error told last.</summary>
    private static string Said(UffdHandler handler, bool process) =>
        process ? File.ReadAllText(UffdRuntimeFolder.LogOf(UffdRuntimeFolder.SocketOf(UffdRuntimeFolder.Make(), handler.ProcessId))) : handler.Error ?? "";

    private void EndsWithItsProcess()
    {
        _folder.WriteImage("image", Pages);
        using var handler = Start(process: false);
        using var vmm = Process.Start(new ProcessStartInfo(Client(), [handler.SocketPath, "1", "--image", _folder["image"], "--close", "--stay"]) { UseShellExecute = false, RedirectStandardOutput = true })!;
        try
        {
            Assert.Contains("\"bad\":0}", vmm.StandardOutput.ReadLine(), StringComparison.Ordinal);
            Host.Until(() => handler.FaultCount == Pages);
            Assert.Equal(1, handler.ConnectionCount);
        }
        finally
        {
            vmm.Kill();
        }

        Host.Until(() => handler.ConnectionCount == 0);
        Assert.Null(handler.Error);
    }

    private int TouchWhatIsNotThere(UffdHandler handler)
    {
        using var vmm = Process.Start(new ProcessStartInfo(Client(), [handler.SocketPath, "1", "--order", "seq"]) { UseShellExecute = false })!;
        try
        {
            return vmm.WaitForExit(Host.Patience) ? vmm.ExitCode : -1;
        }
        finally
        {
            vmm.Kill();
        }
    }

    private string Client() => Compiler.Compile(Path.Combine(AppContext.BaseDirectory, "Userfault", "uffd-client.c"), _folder["client"]);

    private UffdHandler Start(bool process, UffdOnError onError = UffdOnError.Poison, bool truncated = false)
    {
        if (truncated) _folder.WriteImage("image", Pages);
        var options = new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand, OnError = onError, SourceTimeout = TimeSpan.FromMilliseconds(200) };
        var handler = process ? UffdHandler.StartProcess(options) : UffdHandler.Start(options);
        if (truncated) Assert.Equal(0, Compiler.Run("truncate", "-s", "65536", _folder["image"]).Code);
        return handler;
    }
}
