using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <summary>A VMM that forks, moves its memory or unmaps a part of it (layout-peer.c), with a real kernel's events.</summary>
[Collection(RuntimeFolder.Name)]
public sealed class LayoutEventTests : IDisposable
{
    private const int Pages = 256;
    private readonly TestFolder _folder = new();
    private UffdHandler? _handler;
    private Process? _peer;

    public LayoutEventTests() => _folder.WriteImage("image", Pages);

    public void Dispose()
    {
        if (_peer is { HasExited: false }) _peer.Kill();
        _peer?.Dispose();
        _handler?.Stop();
        _handler?.Dispose();
        _folder.Dispose();
    }

    /// <summary>The pages that the child lacks read as zeros once its userfaultfd is closed: it must get an error before.</summary>
    [CompilerTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void TheChildOfAForkDoesNotReadZeros(bool process)
    {
        Start(process, "fork");
        Assert.Equal("right", Line());
        Go();
        Assert.Equal("child: right, SIGBUS", Line());
        Assert.Equal("right", Line());
        Host.Until(() => _handler!.Error is not null);
        Assert.Contains("forked", _handler!.Error, StringComparison.Ordinal);
        Go();
    }

    [CompilerFact]
    public void AForkEndsTheVmmWhereThatIsOrdered()
    {
        Start(process: false, "fork", UffdOnError.Kill);
        Assert.Equal("right", Line());
        Go();
        Assert.True(_peer!.WaitForExit(Host.Patience));
        Assert.Equal(128 + 9, _peer.ExitCode);
        Host.Until(() => _handler!.Error?.Contains("forked", StringComparison.Ordinal) == true);
    }

    [CompilerTheory]
    [InlineData(false, UffdStrategy.OnDemand)]
    [InlineData(false, UffdStrategy.Background)]
    [InlineData(true, UffdStrategy.OnDemand)]
    public void MemoryThatIsMovedIsServedWhereItLies(bool process, UffdStrategy strategy)
    {
        Start(process, "remap", strategy: strategy);
        Assert.Equal("right", Line());
        Go();
        Assert.Equal("right", Line());
        if (process)
        {
            // The successor has the list of the hand-over, and what was moved since.
            using var worker = Pidfd.TryOpen(_handler!.WorkerProcessId, out _)!;
            Assert.Equal(0, Pidfd.TryKill(worker));
            Host.Until(() => Pidfd.HasEnded(worker));
        }
        else
        {
            Assert.Null(_handler!.Error);
        }

        for (var part = 0; part < 3; part++)
        {
            Go();
            Assert.Equal("right", Line());
        }

        Assert.Equal(1, _handler.ConnectionCount);
    }

    /// <summary>What is mapped later at the same place is no memory of the image: it is zero.</summary>
    [CompilerTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void MemoryThatIsUnmappedIsForgotten(bool process)
    {
        Start(process, "unmap");
        Assert.Equal("right", Line());
        Go();
        Assert.Equal("unmapped", Line());
        Go();
        Assert.Equal("zeros", Line());
        Go();
        Assert.Equal("right", Line());
        Assert.Null(_handler!.Error);
        Assert.Equal(0, Assert.Single(_handler.GetFigures().Vms).MissingPageCount);
    }

    private void Start(bool process, string what, UffdOnError onError = UffdOnError.Poison, UffdStrategy strategy = UffdStrategy.OnDemand)
    {
        var options = new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = strategy, OnError = onError };
        _handler = process ? UffdHandler.StartProcess(options) : UffdHandler.Start(options);
        var program = Compiler.Compile(Path.Combine(AppContext.BaseDirectory, "Userfault", "layout-peer.c"), _folder["peer"]);
        _peer = Process.Start(new ProcessStartInfo(program, [_folder["h.sock"], _folder["image"], what]) { UseShellExecute = false, RedirectStandardInput = true, RedirectStandardOutput = true })!;
    }

    private string? Line()
    {
        var line = _peer!.StandardOutput.ReadLineAsync();
        return line.Wait(Host.Patience) ? line.Result : $"nothing within {Host.Patience.TotalSeconds} s; {_handler!.Error}";
    }

    private void Go()
    {
        _peer!.StandardInput.WriteLine();
        _peer.StandardInput.Flush();
    }
}
