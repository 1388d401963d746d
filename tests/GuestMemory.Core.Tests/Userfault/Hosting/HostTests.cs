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
        Assert.Same(handler, Assert.Single(UffdHandler.FindAll()));
        var memory = Memory((0, 128), (0x10000000, 128));
        UffdRegistration.Connect(handler.SocketPath, memory);
        AssertPages(memory, 0, 0, 128);
        AssertPages(memory, 0x10000000, 128, 128);
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
    public void WhoeverStopsItItsLastWordsAreHeard()
    {
        var handler = Start(16);
        UffdRegistration.Connect(handler.SocketPath, Memory((0, 16)));
        Host.Until(() => handler.ConnectionCount == 1);
        Assert.False(handler.Wait(TimeSpan.FromMilliseconds(10)));
        using var cancellation = new CancellationTokenSource(20);
        Assert.Throws<OperationCanceledException>(() => handler.Wait(Timeout.InfiniteTimeSpan, cancellation.Token));
        Signal(handler.ProcessId, 15);
        Assert.True(handler.Wait(TimeSpan.FromSeconds(20)));
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
        AssertPages(GuestMemoryMmap.FromRegions(_regions), 0, 0, 1);
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
        AssertPages(memory, 0, 0, 8);
        var worker = handler.WorkerProcessId;
        Signal(handler.ProcessId, 9);
        Assert.True(handler.Wait(TimeSpan.FromSeconds(20)));
        Assert.Equal(UffdHandlerState.Failed, handler.State);
        Assert.Contains("has ended", handler.Error, StringComparison.Ordinal);
        Host.Until(() => UffdHandler.FindAll().Count == 0 && Directory.GetFiles(runtime.Folder.Path, "*.sock").Length == 0);
        Assert.Empty(Directory.GetFiles(runtime.Folder.Path, "*.sock"));
        // Nobody else has the VM now; the worker ends with it.
        AssertPages(memory, 8 * 4096, 8, 56);
        Assert.True(Directory.Exists($"/proc/{worker}"));
        foreach (var region in memory.Regions) region.Dispose();
        Host.Until(() => !IsAlive(worker));
        Assert.False(IsAlive(worker));
        foreach (var log in Directory.GetFiles(runtime.Folder.Path, "*.log")) File.Delete(log);
    }

    /// <summary>
    /// The worker dies again and again while pages are touched and removed: at any moment, and, where it is told to, exactly
    /// between reading events and answering. GUESTMEMORY_CRASH_ROUNDS says how often (100 is what a release is tried with),
    /// GUESTMEMORY_CRASH_MIB how large the VM is.
    /// </summary>
    [UffdTheory]
    [InlineData(false, UffdStrategy.OnDemand)]
    [InlineData(false, UffdStrategy.Background)]
    [InlineData(true, UffdStrategy.OnDemand)]
    public void NoVmIsLostWhenItsWorkerDies(bool betweenReadAndAnswer, UffdStrategy strategy)
    {
        var rounds = Setting("GUESTMEMORY_CRASH_ROUNDS", 8);
        var pages = Setting("GUESTMEMORY_CRASH_MIB", 128) * 256;
        var handler = WithDebug(betweenReadAndAnswer ? $"die-after-read={Math.Max(20, pages / rounds)}" : null, () => Start(pages, strategy));
        var memory = Memory((0x100000000, pages));
        UffdRegistration.Connect(handler.SocketPath, memory);
        var touching = new Touching(memory, pages);
        var killed = 0;
        var deadline = Stopwatch.StartNew();
        while (!touching.IsDone && (betweenReadAndAnswer || killed < rounds))
        {
            Assert.True(deadline.Elapsed < TimeSpan.FromMinutes(10), $"hung: {touching.Progress} of {pages} pages; {handler.State}, {handler.Error}");
            Thread.Sleep(betweenReadAndAnswer ? 20 : Random.Shared.Next(1, 40));
            if (betweenReadAndAnswer || handler.WorkerProcessId is not (var worker and > 0) || touching.Progress < (long)pages * killed / (rounds + 1)) continue;
            if (Signal(worker, 9)) killed++;
        }

        touching.Join();
        var deaths = handler.WorkerCount - 1;
        Assert.True(deaths >= (betweenReadAndAnswer ? rounds / 2 : rounds * 3 / 4), $"only {deaths} workers died");
        Assert.Equal(UffdHandlerState.Serving, handler.State);
    }

    /// <summary>Memory that cannot be write-protected, since there is none, is refused by the worker; that is no reason to refuse others.</summary>
    [UffdFact]
    public void VmsThatCannotBeTakenAreInNobodysWay()
    {
        var handler = StartTracking(32, UffdStrategy.OnDemand);
        using var peer = Connect(handler, 32, isAsync: false);
        Host.Until(() => handler.ConnectionCount == 1);
        for (var i = 1; i <= 20; i++)
        {
            using var bad = new RawPeer(handler.SocketPath);
            bad.Send([new GuestRegionUffdMapping(4096, 4096, 0, 4096)]);
            // While the bad one is there, and when it is not any more.
            AssertPages(GuestMemoryMmap.FromRegions(_regions), (ulong)i * 4096, i, 1);
            Host.Until(() => handler.TotalConnectionCount == i + 1 && handler.ConnectionCount == 1);
        }

        AssertPages(GuestMemoryMmap.FromRegions(_regions), 0, 0, 32);
        Assert.Equal((21, 1, 1), (handler.TotalConnectionCount, handler.ConnectionCount, handler.WorkerCount));
    }

    [UffdFact]
    public void ARecordGoesOnWhenTheWorkerDies()
    {
        _folder.WriteImage("image", 16);
        var handler = UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand, RecordPath = _folder["record"] });
        var first = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, first);
        AssertPages(first, 9 * 4096, 9, 1);
        AssertPages(first, 2 * 4096, 2, 1);
        first.Regions[0].Dispose();
        Host.Until(() => Record().Length == 2);
        Assert.Equal([9, 2], Record());
        var second = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, second);
        AssertPages(second, 7 * 4096, 7, 1);
        // A page is there before it is noted; what dies in between is not counted, and not recorded.
        Host.Until(() => handler.FaultCount == 3);
        Assert.True(Signal(handler.WorkerProcessId, 9));
        AssertPages(second, 4 * 4096, 4, 1);
        second.Regions[0].Dispose();
        Host.Until(() => Record().Length == 4);
        Assert.Equal([9, 2, 7, 4], Record());

        uint[] Record() => TouchRecord.Load(_folder["record"], 16 * 4096);
    }

    /// <summary>A VM never gets pages of a memory that is not its own: a file that takes the image's place is another image.</summary>
    [UffdFact]
    public void ASuccessorServesTheImageThatVmsWereGiven()
    {
        var handler = Start(16);
        var memory = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, memory);
        AssertPages(memory, 0, 0, 4);
        File.Move(_folder.WriteImage("other", 16, firstNumber: 1000), _folder["image"], overwrite: true);
        AssertPages(memory, 4 * 4096, 4, 4);
        Assert.True(Signal(handler.WorkerProcessId, 9));
        AssertPages(memory, 8 * 4096, 8, 8);
        // A new VM too: all VMs of a handler have the same memory.
        var other = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, other);
        AssertPages(other, 0, 0, 16);
        Host.Until(() => (handler.State, handler.WorkerCount) == (UffdHandlerState.Serving, 2));
    }

    /// <summary>What was overwritten in place is gone; that VMs go on with half of each is what must not be.</summary>
    [UffdFact]
    public void AnImageThatWasOverwrittenIsNotServedByASuccessor()
    {
        var handler = Start(16);
        var memory = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, memory);
        AssertPages(memory, 0, 0, 4);
        using (var file = File.Open(_folder["image"], FileMode.Open, FileAccess.Write, FileShare.ReadWrite)) file.Write(new byte[4096]);
        Assert.True(Signal(handler.WorkerProcessId, 9));
        Assert.True(handler.Wait(TimeSpan.FromSeconds(20)));
        Assert.Equal(UffdHandlerState.Failed, handler.State);
        Assert.Contains($"{_folder["image"]} was written to", handler.Error, StringComparison.Ordinal);
        foreach (var log in Directory.GetFiles(runtime.Folder.Path, "*.log")) File.Delete(log);
    }

    /// <summary>A message that is refused leaves the VM that came before it; its end is noticed by supervisor and worker.</summary>
    [UffdFact]
    public void AConnectionThatGoesBadLeavesItsVm()
    {
        var handler = Start(16);
        using (var peer = Connect(handler, 16, isAsync: false))
        {
            AssertPages(GuestMemoryMmap.FromRegions(_regions), 0, 0, 8);
            peer.Send("nonsense", userfaultfds: 0);
            Host.Until(() => handler.Error is not null);
            AssertPages(GuestMemoryMmap.FromRegions(_regions), 8 * 4096, 8, 8);
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
        using var limit = new CancellationTokenSource(TimeSpan.FromSeconds(20));
        GuestMemoryMmap.FromRegions(_regions).ReadExact(new GuestAddress(4096), new byte[8].AsMemory(), limit.Token);
        Assert.Equal((UffdHandlerState.Serving, 1, worker), (handler.State, handler.ConnectionCount, handler.WorkerProcessId));
    }

    [UffdTheory]
    [InlineData("exec \"$@\" 2>/dev/full")]
    [InlineData("trap '' CHLD; exec \"$@\" 2>/dev/null")]
    public void HoweverItIsStartedItLosesNoVm(string command)
    {
        _folder.WriteImage("image", 16);
        var start = UffdHostProcess.Command();
        using var process = Process.Start("sh", ["-c", command, "sh", start.FileName, .. start.ArgumentList, "--socket-path", _folder["h.sock"], "--memory-path", _folder["image"], "--strategy", "OnDemand"]);
        Host.Until(() => UffdHandler.FindAll().Count == 1 || process.HasExited);
        var handler = Assert.Single(UffdHandler.FindAll());
        using (var bad = new RawPeer(handler.SocketPath)) bad.Send("nonsense", userfaultfds: 0);
        var memory = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, memory);
        AssertPages(memory, 0, 0, 8);
        Assert.True(Signal(handler.WorkerProcessId, 9));
        AssertPages(memory, 8 * 4096, 8, 8);
        Host.Until(() => handler.WorkerCount == 2);
        handler.Stop();
        Assert.True(process.WaitForExit(TimeSpan.FromSeconds(20)));
        Assert.Equal(0, process.ExitCode);
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

    private static int Setting(string variable, int value) =>
        int.TryParse(Environment.GetEnvironmentVariable(variable), NumberStyles.None, CultureInfo.InvariantCulture, out var set) ? set : value;

    private static bool Signal(int process, int signal)
    {
        using var descriptor = Pidfd.TryOpen(process, out _);
        return descriptor is not null && Pidfd.TrySignal(descriptor, signal) == 0;
    }

    private static bool IsAlive(int process) => File.Exists($"/proc/{process}/stat") && !File.ReadAllText($"/proc/{process}/stat").Contains(") Z ", StringComparison.Ordinal);

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

    private static void AssertPages(GuestMemoryMmap memory, ulong address, int firstNumber, int count, int pageSize = 4096)
    {
        var page = new byte[pageSize];
        var expected = new byte[pageSize];
        for (var i = 0; i < count; i++)
        {
            memory.ReadExact(new GuestAddress(address + ((ulong)i * (ulong)pageSize)), page);
            TestFolder.Fill(expected, firstNumber + i);
            Assert.True(expected.AsSpan().SequenceEqual(page), $"page {firstNumber + i}");
        }
    }
}
