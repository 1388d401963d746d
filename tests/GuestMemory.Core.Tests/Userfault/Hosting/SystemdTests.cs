using System.Diagnostics;
using System.Net.Sockets;

namespace GuestMemory.Core.Tests;

/// <summary>The handler under a service manager: what it tells it, what it has it keep, and what it takes from it.</summary>
[Collection(RuntimeFolder.Name)]
public sealed partial class SystemdTests(RuntimeFolder runtime) : IDisposable
{
    private readonly TestFolder _folder = new();
    private readonly List<GuestRegionMmap> _regions = [];
    private readonly List<int> _processes = [];

    public void Dispose()
    {
        foreach (var region in _regions) region.Dispose();
        foreach (var process in _processes) End(process, 9);
        foreach (var file in Directory.GetFiles(runtime.Folder.Path)) File.Delete(file);
        _folder.Dispose();
    }

    [UffdFact]
    public void TheDeathOfTheSupervisorIsSurvivedWhereItsDescriptorsAreKept()
    {
        _folder.WriteImage("image", 64);
        using var manager = new ServiceManager(_folder["notify"]);
        var first = StartReady(manager);
        Assert.True(manager.WasTold(text => text.StartsWith("STATUS=Serving 0 VMs", StringComparison.Ordinal)));
        Assert.Equal("image-0 images listener", manager.KeptNames);

        var memory = Memory(64);
        UffdRegistration.Connect(_folder["h.sock"], memory);
        TestFolder.AssertPages(memory, 0, 16);
        memory.Regions[0].GetMmapRegion().Discard(0, 4096);
        Assert.True(manager.WasTold(text => text.StartsWith("STATUS=Serving 1 VMs", StringComparison.Ordinal)));
        Assert.Equal("image-0 images listener vm-1-list vm-1-process vm-1-socket vm-1-state vm-1-uffd", manager.KeptNames);

        ServiceManager.Kill(first);
        manager.Told.Clear();

        var second = StartReady(manager);
        TestFolder.AssertPages(memory, 16, 48);
        var page = new byte[4096];
        memory.ReadExact(new GuestAddress(0), page);
        Assert.True(page.AsSpan().IndexOfAnyExcept((byte)0) < 0);
        // The socket is the same, and takes new VMs.
        var other = Memory(64);
        UffdRegistration.Connect(_folder["h.sock"], other);
        TestFolder.AssertPages(other, 0, 64);
        var handler = Host.OnlyHandler();
        Assert.Equal((second, 2), (handler.ProcessId, handler.ConnectionCount));

        foreach (var region in _regions) region.Dispose();
        Host.Until(() => handler.ConnectionCount == 0);
        Assert.True(manager.WasTold(text => text.StartsWith("FDSTOREREMOVE=1\nFDNAME=vm-2-list", StringComparison.Ordinal)));
        Assert.Equal("image-0 images listener", manager.KeptNames);
        handler.Stop();
        Assert.True(manager.WasTold(text => text == "STOPPING=1"));
        Assert.False(File.Exists(_folder["h.sock"]));
    }

    /// <summary>A VM's name, what follows on its errors, and the memfd by which its memory is read come with it.</summary>
    [UffdFact]
    public void AVmIsCalledAndReadAsBeforeARestart()
    {
        _folder.WriteImage("image", 64);
        using var manager = new ServiceManager(_folder["notify"]);
        var first = StartReady(manager);
        var region = new GuestRegionMmap(new MmapRegionBuilder(64 * 4096).WithMemfd().Build(), new GuestAddress(0));
        _regions.Add(region);
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(_folder["h.sock"], memory, sharesMemory: true);
        memory.Write(new GuestAddress(3 * 4096), [1, 2, 3]);
        Assert.True(manager.WasTold(_ => manager.Kept.Exists(item => item.Name == "vm-1-memory")));
        var vm = Assert.Single(Host.OnlyHandler().GetVms());
        vm.Rename("web");
        vm.SetOnError(UffdOnError.Kill);
        ServiceManager.Kill(first);
        manager.Told.Clear();
        StartReady(manager);
        var handler = Host.OnlyHandler();
        vm = Assert.Single(handler.GetVms());
        Assert.Equal((1, "web", UffdOnError.Kill, true), (vm.Id, vm.Name, vm.OnError, vm.CanReadMemory));
        var read = vm.OpenMemory();
        var bytes = new byte[3];
        read.ReadExact(new GuestAddress(3 * 4096), bytes);
        Assert.Equal([1, 2, 3], bytes);
        TestFolder.AssertPages(read, 4, 60);
        read.Regions[0].Dispose();
        TestFolder.AssertPages(memory, 4, 60);
        vm.Stop(UffdOnError.Poison);
        Assert.True(manager.WasTold(text => text == "FDSTOREREMOVE=1\nFDNAME=vm-1-memory"));
        Assert.Equal("image-0 images listener", manager.KeptNames);
        handler.Stop();
    }

    /// <summary>A state that another version of the program wrote is not read as if it were this one's.</summary>
    [UffdFact]
    public void AVmWhoseStateHasAnotherLayoutIsRefusedAndKept()
    {
        using var manager = new ServiceManager(_folder["notify"]);
        StartAndDie(manager);
        using (var state = new Microsoft.Win32.SafeHandles.SafeFileHandle(manager.Kept.Find(item => item.Name == "vm-1-state").Descriptor.Number, ownsHandle: false))
            RandomAccess.Write(state, BitConverter.GetBytes(UffdVmState.Version + 8), UffdVmState.HeaderOffset + 8);
        StartReady(manager);
        var handler = Host.OnlyHandler();
        Assert.Equal(0, handler.ConnectionCount);
        Assert.Contains($"VM 1 cannot be taken over: The state of the VM has layout {UffdVmState.Version + 8}", handler.Error, StringComparison.Ordinal);
        // A new VM takes nothing of its place.
        var memory = Memory(64);
        UffdRegistration.Connect(_folder["h.sock"], memory);
        TestFolder.AssertPages(memory, 0, 64);
        Assert.True(manager.WasTold(_ => manager.KeptNames.Contains("vm-1-uffd vm-2-list", StringComparison.Ordinal)), manager.KeptNames);
    }

    /// <summary>Of a VMM that closed its socket the descriptor of its process alone tells the end, also to a supervisor that comes later.</summary>
    [CompilerFact]
    public void AVmmWithoutASocketIsKeptUntilItsProcessEnds()
    {
        _folder.WriteImage("image", 256);
        using var manager = new ServiceManager(_folder["notify"]);
        var first = StartReady(manager);
        var client = Compiler.Compile(Path.Combine(AppContext.BaseDirectory, "Userfault", "uffd-client.c"), _folder["client"]);
        using var vmm = Process.Start(new ProcessStartInfo(client, [_folder["h.sock"], "1", "--image", _folder["image"], "--close", "--stay"]) { UseShellExecute = false, RedirectStandardOutput = true })!;
        _processes.Add(vmm.Id);
        Assert.Contains("\"bad\":0}", vmm.StandardOutput.ReadLine(), StringComparison.Ordinal);
        Assert.True(manager.WasTold(_ => manager.Kept.Count == 8));
        for (var round = 0; round < 2; round++)
        {
            var handler = Host.OnlyHandler();
            Assert.Equal(1, handler.ConnectionCount);
            ServiceManager.Kill(first);
            if (round == 1) vmm.Kill();
            manager.Told.Clear();
            first = StartReady(manager);
        }

        var last = Host.OnlyHandler();
        Host.Until(() => last.ConnectionCount == 0);
        last.Stop();
    }

    /// <summary>Who is started with -TrackDirty for VMs that came before does not know what they wrote until then, and says everything.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void MarksOutliveTheSupervisor(bool trackedBefore)
    {
        _folder.WriteImage("image", 64);
        using var manager = new ServiceManager(_folder["notify"]);
        var first = StartReady(manager, trackedBefore ? ["--track-dirty"] : []);
        var memory = Memory(64);
        UffdRegistration.Connect(_folder["h.sock"], memory);
        TestFolder.AssertPages(memory, 0, 8);
        memory.Write(new GuestAddress(2 * 4096), [1]);
        memory.Write(new GuestAddress(9 * 4096), [1]);
        Assert.True(manager.WasTold(text => text.StartsWith("STATUS=Serving 1 VMs", StringComparison.Ordinal)));
        Assert.True(manager.WasTold(_ => manager.Kept.Count == 8));
        if (trackedBefore)
        {
            // Taken, and not confirmed.
            using var client = UffdControlClient.TryConnect(UffdRuntimeFolder.SocketOf(runtime.Folder.Path, first), out _)!;
            client.AskForFile(new UffdControlRequest { Request = UffdControlRequest.Dirty, Clear = true }, CancellationToken.None, out _)!.Dispose();
        }

        ServiceManager.Kill(first);
        manager.Told.Clear();

        StartReady(manager, "--track-dirty");
        memory.Write(new GuestAddress(20 * 4096), [1]);
        var handler = Host.OnlyHandler();
        Assert.Equal(trackedBefore ? [2, 9, 20] : [0, 1, 2, 3, 4, 5, 6, 7, 9, 20], Dirty(handler));
        Assert.Empty(Dirty(handler));
        foreach (var page in new ulong[] { 3, 9, 30 }) memory.Write(new GuestAddress(page * 4096), [2]);
        Assert.Equal([3, 9, 30], Dirty(handler));
        foreach (var region in _regions) region.Dispose();
        handler.Stop();
    }

    [Fact]
    public void AWatchdogHearsThatTheSupervisorRuns()
    {
        _folder.WriteImage("image", 8);
        using var manager = new ServiceManager(_folder["notify"]) { Watchdog = TimeSpan.FromMilliseconds(200) };
        StartReady(manager);
        manager.Told.Clear();
        Assert.True(manager.WasTold(_ => manager.Told.Count(text => text == "WATCHDOG=1") >= 3));
        Host.OnlyHandler().Stop();
    }

    [Theory]
    [InlineData("30000000", null, 15000)]
    [InlineData("30000000", "42", 15000)]
    [InlineData("30000000", "43", null)]
    [InlineData(null, null, null)]
    [InlineData("0", "42", null)]
    [InlineData("-5", null, null)]
    [InlineData("no number", null, null)]
    public void AWatchdogIsForTheProcessThatItNames(string? microseconds, string? process, int? milliseconds) =>
        Assert.Equal(milliseconds, (int?)UffdHost.Systemd.WatchdogOf(microseconds, process, 42)?.TotalMilliseconds);

    [UffdFact]
    public void AListeningSocketIsTakenFromTheManager()
    {
        _folder.WriteImage("image", 8);
        using var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        socket.Bind(new UnixDomainSocketEndPoint(_folder["h.sock"]));
        socket.Listen();
        using var manager = new ServiceManager(_folder["notify"]);
        manager.Kept.Add(("uffd.socket", new SafeDescriptor(Fcntl.Duplicate((int)socket.Handle))));
        // Who comes before the handler is there waits for it.
        var memory = Memory(8);
        UffdRegistration.Connect(_folder["h.sock"], memory);
        StartReady(manager);
        TestFolder.AssertPages(memory, 0, 8);
        Assert.DoesNotContain(manager.Kept, item => item.Name == "listener");
        foreach (var region in _regions) region.Dispose();
        Host.OnlyHandler().Stop();
        Assert.True(File.Exists(_folder["h.sock"]));
    }

    /// <summary>A handler under the manager, with a VM that has touched 16 of 64 pages, that was killed as systemd does.</summary>
    private GuestMemoryMmap StartAndDie(ServiceManager manager)
    {
        _folder.WriteImage("image", 64);
        var first = StartReady(manager);
        var memory = Memory(64);
        UffdRegistration.Connect(_folder["h.sock"], memory);
        TestFolder.AssertPages(memory, 0, 16);
        Assert.True(manager.WasTold(_ => manager.Kept.Exists(item => item.Name == "vm-1-list")));
        ServiceManager.Kill(first);
        manager.Told.Clear();
        return memory;
    }

    private void AssertRefused(ServiceManager manager, string[] arguments, string error)
    {
        using var process = Pidfd.TryOpen(Start(manager, arguments), out _)!;
        string? how = null;
        Host.Until(() => (how = Pidfd.TryReap(process)) is not null);
        Assert.Equal("exit code 1", how);
        Assert.Contains(error, manager.Log, StringComparison.Ordinal);
        Assert.False(manager.WasTold(text => text.Contains("READY=1", StringComparison.Ordinal), seconds: 0));
    }

    private static long[] Dirty(UffdHandler handler)
    {
        var bitmap = Assert.Single(handler.GetDirtyBitmaps(clear: true));
        var pages = new long[bitmap.PageCount];
        return pages[..bitmap.ListPages(pages)];
    }

    private int Start(ServiceManager manager, params string[] more)
    {
        var process = manager.Start(runtime.Folder.Path, ["--socket-path", _folder["h.sock"], "--memory-path", _folder["image"], "--strategy", "OnDemand", .. more]);
        _processes.Add(process);
        return process;
    }

    /// <summary>The same, until it says that VMs can connect.</summary>
    private int StartReady(ServiceManager manager, params string[] more)
    {
        var process = Start(manager, more);
        Assert.True(manager.WasTold(text => text.Contains("READY=1", StringComparison.Ordinal)), manager.Log);
        return process;
    }

    private GuestMemoryMmap Memory(int pages)
    {
        var region = new GuestRegionMmap(new MmapRegionBuilder((ulong)pages * 4096).Build(), new GuestAddress(0));
        _regions.Add(region);
        return GuestMemoryMmap.FromRegions([region]);
    }
}
