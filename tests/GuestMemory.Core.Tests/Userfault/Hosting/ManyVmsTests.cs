using System.Diagnostics;
using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>Hundreds of VMs in one handler in a process of its own, and too few descriptors for them.</summary>
[Collection(RuntimeFolder.Name)]
public sealed class ManyVmsTests(RuntimeFolder runtime) : IDisposable
{
    private const int Pages = 16;

    private readonly TestFolder _folder = new();
    private readonly List<(GuestRegionMmap Region, RawPeer Peer)> _vms = [];

    public void Dispose()
    {
        foreach (var (region, peer) in _vms)
        {
            peer.Dispose();
            region.Dispose();
        }

        runtime.StopAll();
        _folder.Dispose();
    }

    [ManyVmsFact]
    public void FiveHundredVmsAndNoneInTheWayOfAnother()
    {
        const int count = 500;
        var handler = Start();
        for (var vm = 0; vm < count; vm++) Connect(handler);
        Host.Until(() => handler.ConnectionCount == count);
        Assert.Equal(count, handler.ConnectionCount);
        // Every VM's pages, then what others do wrong, and every VM's pages again.
        for (var vm = 0; vm < count; vm++) AssertPages(vm, 0, 8);
        Assert.Equal(handler.ProcessId, Host.OnlyHandler().ProcessId);
        Host.Until(() => handler.FaultCount == count * 8);
        var figures = handler.GetFigures();
        Assert.Equal((count, (long)count * 8), (figures.Vms.Count, figures.Vms.Sum(vm => vm.FaultCount)));
        Assert.All(figures.Vms, vm => Assert.Equal(8, vm.FaultCount));
        using (var bad = new RawPeer(handler.SocketPath)) bad.Send("nonsense", userfaultfds: 1);
        for (var vm = 0; vm < count; vm += 50) _vms[vm].Peer.Dispose();
        Host.Until(() => handler.ConnectionCount == count - 10);
        Assert.Equal(count - 10, handler.ConnectionCount);
        Host.Until(() => handler.Error is not null);
        Assert.Contains("is not the expected JSON", handler.Error, StringComparison.Ordinal);
        using (var worker = Pidfd.TryOpen(handler.WorkerProcessId, out _)!) Assert.Equal(0, Pidfd.TrySignal(worker, Pidfd.SIGKILL));
        for (var vm = 0; vm < count; vm++)
        {
            if (vm % 50 != 0) AssertPages(vm, 8, 4);
        }

        Assert.Equal((count - 10, 2), (handler.ConnectionCount, handler.WorkerCount));
        handler.Upgrade(TimeSpan.FromSeconds(60));
        Assert.Equal((count - 10, 3), (handler.ConnectionCount, handler.WorkerCount));
        for (var vm = 0; vm < count; vm++)
        {
            if (vm % 50 != 0) AssertPages(vm, 12, 4);
        }
    }

    /// <summary>What both processes have in memory, also of the states that they share; a page of the VM was touched, so that its service has run.</summary>
    [ManyVmsFact]
    public void AFurtherVmTakesLessThan128KiB()
    {
        const int few = 50, more = 250;
        var handler = Start();
        for (var vm = 0; vm < few; vm++) Add();
        var before = MemoryOf(handler);
        for (var vm = 0; vm < more; vm++) Add();
        Assert.Equal(few + more, handler.ConnectionCount);
        Assert.InRange((MemoryOf(handler) - before) / more, 0, 128 << 10);

        void Add()
        {
            Connect(handler);
            AssertPages(_vms.Count - 1, 3, 1);
        }
    }

    /// <summary>New VMs wait in the queue of the socket, those that are there are served, and when there are descriptors again all is well.</summary>
    [ManyVmsFact]
    public void DescriptorsThatRunOutInTheSupervisorStopNoVm()
    {
        var handler = Start();
        Connect(handler);
        Host.Until(() => handler.ConnectionCount == 1);
        var limit = Limit(handler.ProcessId, RoomFor(6, handler.ProcessId));
        for (var vm = 1; vm < 8; vm++) Connect(handler);
        Host.Until(() => handler.Error is not null);
        Assert.Contains("ulimit -n", handler.Error, StringComparison.Ordinal);
        AssertPages(0, 0, Pages);
        var served = handler.ConnectionCount;
        Assert.InRange(served, 1, 6);
        Limit(handler.ProcessId, limit);
        // A VM whose hand-over could not be taken was refused; one that waited in the queue comes in before the next.
        Connect(handler);
        AssertPages(8, 0, Pages);
        Assert.InRange(handler.ConnectionCount, served + 1, 9);
    }

    /// <summary>A worker that cannot take a VM's descriptors ends, and its successor has them all.</summary>
    [ManyVmsFact]
    public void DescriptorsThatRunOutInTheWorkerLoseNoVm()
    {
        var handler = Start();
        Connect(handler);
        AssertPages(0, 0, 4);
        Limit(handler.WorkerProcessId, RoomFor(1, handler.WorkerProcessId));
        Connect(handler);
        AssertPages(1, 0, Pages);
        AssertPages(0, 4, Pages - 4);
        Host.Until(() => handler.WorkerCount == 2);
        Assert.Equal((2, 2), (handler.ConnectionCount, handler.WorkerCount));
    }

    /// <summary>New VMs and the next worker wait, no VM ends, and no process spins.</summary>
    [ManyVmsFact]
    public void DescriptorsThatRunOutInTheSupervisorLoseNoVm()
    {
        var handler = Start();
        Connect(handler);
        AssertPages(0, 0, 4);
        var (supervisor, worker) = (handler.ProcessId, handler.WorkerProcessId);
        var limit = Limit(supervisor, RoomFor(0, supervisor));
        using (var socket = UnixSocket.Create(nonBlocking: true))
        {
            Assert.Equal(0, UnixSocket.TryConnect(socket, UffdRuntimeFolder.SocketOf(runtime.Folder.Path, supervisor)));
            using var process = Process.GetProcessById(supervisor);
            var before = process.TotalProcessorTime;
            var clock = Stopwatch.StartNew();
            Thread.Sleep(1000);
            process.Refresh();
            // What spins takes all of a processor.
            Assert.InRange((process.TotalProcessorTime - before) / clock.Elapsed, 0, 0.7);
        }

        using (var descriptor = Pidfd.TryOpen(worker, out _)!) Assert.Equal(0, Pidfd.TryKill(descriptor));
        Thread.Sleep(500);
        Limit(supervisor, limit);
        AssertPages(0, 4, Pages - 4);
        Assert.Equal((UffdHandlerState.Serving, supervisor, 1), (handler.State, handler.ProcessId, handler.ConnectionCount));
        Assert.NotEqual(worker, handler.WorkerProcessId);
    }

    private UffdHandler Start()
    {
        _folder.WriteImage("image", Pages);
        return UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand });
    }

    private void Connect(UffdHandler handler)
    {
        var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        var peer = new RawPeer(handler.SocketPath, region);
        _vms.Add((region, peer));
        peer.Send([new GuestRegionUffdMapping(region.HostAddress, Pages * 4096, 0, 4096)]);
    }

    private void AssertPages(int vm, int first, int count) => TestFolder.AssertPages(GuestMemoryMmap.FromRegions([_vms[vm].Region]), first, count);

    private static long MemoryOf(UffdHandler handler) => new[] { handler.ProcessId, handler.WorkerProcessId }.Sum(static process =>
        File.ReadLines($"/proc/{process}/smaps_rollup").Where(static line => line.StartsWith("Pss:", StringComparison.Ordinal))
            .Sum(static line => long.Parse(line.Split(' ', StringSplitOptions.RemoveEmptyEntries)[1], CultureInfo.InvariantCulture) * 1024));

    /// <summary>A limit with which a process can open so many files more.</summary>
    private static int RoomFor(int files, int process)
    {
        var open = Directory.GetFiles($"/proc/{process}/fd").Select(path => int.Parse(Path.GetFileName(path), CultureInfo.InvariantCulture)).ToHashSet();
        return Enumerable.Range(0, int.MaxValue).Where(number => !open.Contains(number)).ElementAt(files);
    }

    /// <summary>Sets how many files a process may open; returns how many it was.</summary>
    private static int Limit(int process, int files)
    {
        var line = File.ReadLines($"/proc/{process}/limits").First(text => text.StartsWith("Max open files", StringComparison.Ordinal));
        var before = int.Parse(line.Split(' ', StringSplitOptions.RemoveEmptyEntries)[3], CultureInfo.InvariantCulture);
        using var prlimit = Process.Start("prlimit", ["--pid", process.ToString(CultureInfo.InvariantCulture), $"--nofile={files}:"]);
        prlimit.WaitForExit();
        Assert.Equal(0, prlimit.ExitCode);
        return before;
    }
}
