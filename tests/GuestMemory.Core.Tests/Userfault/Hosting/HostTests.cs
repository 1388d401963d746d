using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>The handler as a process of its own, with this process as its VMM.</summary>
[Collection(RuntimeFolder.Name)]
public sealed partial class HostTests(RuntimeFolder runtime) : IDisposable
{
    private readonly TestFolder _folder = new();
    private readonly List<GuestRegionMmap> _regions = [];

    public void Dispose()
    {
        foreach (var region in _regions) region.Dispose();
        runtime.StopAll();
        _folder.Dispose();
    }

    [UffdFact]
    public void ItServesAndTellsAndStops()
    {
        var handler = Start(256);
        Assert.Equal(UffdHandlerState.Listening, handler.State);
        Assert.NotEqual(Environment.ProcessId, handler.ProcessId);
        Assert.NotEqual(handler.ProcessId, handler.WorkerProcessId);
        Assert.Equal((handler.ProcessId, 1), (handler.Id, handler.WorkerCount));
        Assert.Same(handler, Host.OnlyHandler());
        var memory = Memory((0, 128), (0x10000000, 128));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 128);
        TestFolder.AssertPages(memory, 0x10000000, 128, 128);
        Host.Until(() => handler.FaultCount == 256);
        Assert.Equal((256L, 256L * 4096, UffdHandlerState.Serving, 1, 1), (handler.FaultCount, handler.ByteCount, handler.State, handler.ConnectionCount, handler.TotalConnectionCount));
        Assert.True(handler.LatencyP50 > TimeSpan.Zero && handler.LatencyP50 <= handler.LatencyP99 && handler.LatencyP99 <= handler.LatencyMax);
        Assert.Null(handler.Error);
        foreach (var region in memory.Regions) region.Dispose();
        Host.Until(() => handler.ConnectionCount == 0);
        Assert.Equal((UffdHandlerState.Listening, 256L), (handler.State, handler.FaultCount));
        handler.Stop();
        Assert.Equal((UffdHandlerState.Stopped, 256L, 0), (handler.State, handler.FaultCount, handler.AbandonedCount));
        Assert.True(handler.Wait(TimeSpan.Zero));
        Assert.False(File.Exists(handler.SocketPath));
        Assert.Empty(UffdHandler.FindAll());
        Host.Until(() => Directory.GetFileSystemEntries(runtime.Folder.Path).Length == 0);
        Assert.Empty(Directory.GetFileSystemEntries(runtime.Folder.Path));
    }

    [UffdFact]
    public void ItsLastStatusIsReceivedAlsoAfterASignal()
    {
        var handler = Start(16);
        UffdRegistration.Connect(handler.SocketPath, Memory((0, 16)));
        Host.Until(() => handler.ConnectionCount == 1);
        Assert.False(handler.Wait(TimeSpan.FromMilliseconds(10)));
        using var cancellation = new CancellationTokenSource(20);
        Assert.Throws<OperationCanceledException>(() => handler.Wait(Timeout.InfiniteTimeSpan, cancellation.Token));
        Signal(handler.ProcessId, 15);
        Assert.True(handler.Wait(Host.Patience));
        Assert.Equal((UffdHandlerState.Stopped, 1), (handler.State, handler.AbandonedCount));
    }

    [Fact]
    public void WhatIsWrongIsSaidByItsName()
    {
        var error = Assert.Throws<GuestMemoryException>(() => UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["none"] }));
        Assert.Equal(GuestMemoryError.ImageNotFound, error.Error);
        Assert.False(File.Exists(_folder["h.sock"]));
        _folder.WriteImage("image", 1);
        File.WriteAllText(_folder["file"], "");
        error = Assert.Throws<GuestMemoryException>(() => UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["file"], MemoryPath = _folder["image"] }));
        Assert.Equal(GuestMemoryError.NotASocket, error.Error);
        // What it made it has taken away before it says so.
        Assert.Empty(Directory.GetFileSystemEntries(runtime.Folder.Path));
    }

    [Fact]
    public void ACancelledStartLeavesNothing()
    {
        _folder.WriteImage("image", 1);
        foreach (var delay in new[] { 0, 40, 80, 120, 160, 200, 250 })
        {
            using var cancellation = new CancellationTokenSource(delay);
            try
            {
                UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"] }, cancellation.Token).Stop();
            }
            catch (OperationCanceledException)
            {
                // Which of them comes too late depends on the machine.
            }

            Host.Until(() => Directory.GetFileSystemEntries(runtime.Folder.Path).Length == 0 && !File.Exists(_folder["h.sock"]));
            Assert.Empty(Directory.GetFileSystemEntries(runtime.Folder.Path));
            Assert.False(File.Exists(_folder["h.sock"]));
        }
    }

    [UffdFact]
    public void AWorkerHasTheDescriptorsItWasGivenAndNoOther()
    {
        var handler = Start(16);
        UffdRegistration.Connect(handler.SocketPath, Memory((0, 16)));
        Host.Until(() => handler.ConnectionCount == 1);
        TestFolder.AssertPages(GuestMemoryMmap.FromRegions(_regions), 0, 0, 1);
        var targets = Directory.GetFiles($"/proc/{handler.WorkerProcessId}/fd").Select(link => new FileInfo(link).LinkTarget ?? "").ToArray();
        Assert.Equal(1, targets.Count(target => target == "anon_inode:[userfaultfd]"));
        // Its channel and the VM's connection; the listener and the control socket are the supervisor's.
        Assert.Equal(2, targets.Count(target => target.StartsWith("socket:", StringComparison.Ordinal)));
        // The VM's state is mapped, and its list was read.
        Assert.Contains("uffd-state", File.ReadAllText($"/proc/{handler.WorkerProcessId}/maps"), StringComparison.Ordinal);
        Assert.DoesNotContain(targets, target => target.Contains("memfd:uffd", StringComparison.Ordinal));
        // That of the VMM.
        Assert.Single(targets, target => target.Contains("pidfd", StringComparison.Ordinal));
        // It lives in a session of its own, away from every terminal.
        var fields = File.ReadAllText($"/proc/{handler.WorkerProcessId}/stat").Split(") ")[1].Split(' ');
        Assert.Equal((handler.ProcessId, 0), (int.Parse(fields[3], CultureInfo.InvariantCulture), int.Parse(fields[4], CultureInfo.InvariantCulture)));
    }

    [UffdFact]
    public void AControlSocketThatADeadHandlerLeftIsTakenAwayAndItsWorkerServesOn()
    {
        var handler = Start(64);
        var memory = Memory((0, 64));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 8);
        var worker = handler.WorkerProcessId;
        Signal(handler.ProcessId, 9);
        Assert.True(handler.Wait(Host.Patience));
        Assert.Equal(UffdHandlerState.Failed, handler.State);
        Assert.Contains("has ended", handler.Error, StringComparison.Ordinal);
        Host.Until(() => UffdHandler.FindAll().Count == 0 && Directory.GetFiles(runtime.Folder.Path, "*.sock").Length == 0);
        Assert.Empty(Directory.GetFiles(runtime.Folder.Path, "*.sock"));
        // No other process has the VM now; the worker ends with it.
        TestFolder.AssertPages(memory, 8 * 4096, 8, 56);
        Assert.True(Directory.Exists($"/proc/{worker}"));
        foreach (var region in memory.Regions) region.Dispose();
        Host.Until(() => !IsAlive(worker));
        Assert.False(IsAlive(worker));
        foreach (var log in Directory.GetFiles(runtime.Folder.Path, "*.log")) File.Delete(log);
    }

    /// <summary>A message that is refused leaves the VM that came before it; its end is noticed by supervisor and worker.</summary>
    [UffdFact]
    public void AConnectionThatGoesBadLeavesItsVm()
    {
        var handler = Start(16);
        using (var peer = Connect(handler, 16, isAsync: false))
        {
            TestFolder.AssertPages(GuestMemoryMmap.FromRegions(_regions), 0, 0, 8);
            peer.Send("nonsense", userfaultfds: 0);
            Host.Until(() => handler.Error is not null);
            TestFolder.AssertPages(GuestMemoryMmap.FromRegions(_regions), 8 * 4096, 8, 8);
            Assert.Equal((1, false), (handler.ConnectionCount, peer.IsHungUp));
        }

        Host.Until(() => handler.ConnectionCount == 0 && Userfaultfds(handler.WorkerProcessId) == 0);
        Assert.Equal(1, handler.WorkerCount);
    }

    /// <summary>Who asks what was written while that cannot be told, asks something else, and goes: one answer fails, and there is no next.</summary>
    [UffdFact]
    public void WhoAsksTwiceAndGoesTakesNobodyAlong()
    {
        var handler = StartTracking(16, UffdStrategy.OnDemand);
        Assert.True(Signal(handler.WorkerProcessId, 19));
        using var peer = Connect(handler, 16, isAsync: false);
        Host.Until(() => handler.ConnectionCount == 1);
        var (supervisor, worker) = (handler.ProcessId, handler.WorkerProcessId);
        Assert.True(Signal(supervisor, 19));
        using (var socket = UnixSocket.Create(nonBlocking: false))
        {
            Assert.Equal(0, UnixSocket.TryConnect(socket, UffdRuntimeFolder.SocketOf(runtime.Folder.Path, supervisor)));
            var text = "{\"request\":\"dirty\"}\n{\"request\":\"status\"}\n"u8;
            Assert.Equal(text.Length, UnixSocket.TrySend(socket, text, []));
        }

        Assert.True(Signal(supervisor, 18));
        Assert.True(Signal(worker, 18));
        using var limit = new CancellationTokenSource(Host.Patience);
        GuestMemoryMmap.FromRegions(_regions).ReadExact(new GuestAddress(4096), new byte[8].AsMemory(), limit.Token);
        Assert.Equal((UffdHandlerState.Serving, 1, worker), (handler.State, handler.ConnectionCount, handler.WorkerProcessId));
    }

    [GuestFact(userfault: true)]
    public void AGuestWhoseMemoryComesThroughItRunsToItsEnd()
    {
        TestGuest.WriteCode(_folder.WriteImage("image", 32), TestGuest.LoadToRcx(0x10000), TestGuest.StoreRcx(0x12000), TestGuest.Hlt);
        using var handler = UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand });
        using var guest = new TestGuest();
        UffdRegistration.Connect(handler.SocketPath, guest.Memory);
        guest.Start();
        Assert.Equal(KvmExitReason.Hlt, guest.Run().Reason);
        var expected = new byte[4096];
        TestFolder.Fill(expected, 16);
        Assert.Equal(BitConverter.ToUInt64(expected), guest.Memory.ReadObject<ulong>(new GuestAddress(0x12000)));
        // 3 pages of tables, code, source and destination.
        Host.Until(() => handler.FaultCount == 6);
        Assert.Equal((6L, null), (handler.FaultCount, handler.Error));
    }

    private static long[] Pages(DirtyBitmap bitmap)
    {
        var pages = new long[bitmap.PageCount];
        return pages[..bitmap.ListPages(pages)];
    }

    private static int Userfaultfds(int process) => Directory.GetFiles($"/proc/{process}/fd").Count(link => new FileInfo(link).LinkTarget == "anon_inode:[userfaultfd]");

    private UffdHandler Start(int pages, UffdStrategy strategy = UffdStrategy.OnDemand)
    {
        _folder.WriteImage("image", pages);
        return UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = strategy });
    }

    private UffdHandler StartTracking(int pages, UffdStrategy strategy)
    {
        _folder.WriteImage("image", pages);
        return UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = strategy, TrackDirty = true });
    }

    private RawPeer Connect(UffdHandler handler, int pages, bool isAsync)
    {
        var region = Memory((0, pages)).Regions[0];
        var peer = new RawPeer(handler.SocketPath, region, Userfaultfd.UFFD_FEATURE_EVENT_REMOVE | (isAsync ? Userfaultfd.UFFD_FEATURE_WP_ASYNC | Userfaultfd.UFFD_FEATURE_WP_UNPOPULATED : 0));
        peer.Send([new GuestRegionUffdMapping(region.GetHostAddress(default), (ulong)pages * 4096, 0, 4096)]);
        return peer;
    }

    private GuestMemoryMmap Memory(params (ulong Address, int Pages)[] layout) =>
        Space(layout.Select(part => (new MmapRegionBuilder((ulong)part.Pages * 4096).WithDirtyTracking().Build(), part.Address)));

    private GuestMemoryMmap Space(IEnumerable<(MmapRegion Mapping, ulong Address)> parts)
    {
        var regions = parts.Select(part => new GuestRegionMmap(part.Mapping, new GuestAddress(part.Address))).ToArray();
        _regions.AddRange(regions);
        return GuestMemoryMmap.FromRegions(regions);
    }
}
