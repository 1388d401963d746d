using System.Net.Sockets;

namespace GuestMemory.Core.Tests;

/// <content>Several images under a service manager.</content>
public sealed partial class SystemdTests
{
    [UffdFact]
    public void EachVmHasItsImageAfterARestart()
    {
        using var manager = new ServiceManager(_folder["notify"]);
        var first = StartImages(manager);
        Assert.Equal("db/image-0 db/images db/listener web/image-0 web/images web/listener", manager.KeptNames);
        var (web, db) = (Connect("web.sock"), Connect("db.sock"));
        TestFolder.AssertPages(web, 0, 16);
        TestFolder.AssertPages(db, 0, 1000, 16);
        // It is not in the arguments of the next one.
        _folder.WriteImage("late", 64, firstNumber: 2000);
        var handler = Host.OnlyHandler();
        handler.AddImage(new UffdImageOptions { Name = "late", SocketPath = _folder["late.sock"], MemoryPath = _folder["late"] });
        var late = Connect("late.sock");
        TestFolder.AssertPages(late, 0, 2000, 16);
        Assert.True(manager.WasTold(_ => manager.Kept.Exists(static item => item.Name == "late/vm-3-list")), manager.KeptNames);
        Assert.Contains("web/vm-1-uffd", manager.KeptNames, StringComparison.Ordinal);
        ServiceManager.Kill(first);
        manager.Told.Clear();
        StartImages(manager);
        handler = Host.OnlyHandler();
        Assert.Equal(["web", "db", "late"], handler.Images.Select(static image => image.Name), StringComparer.Ordinal);
        Assert.Equal(["web", "db", "late"], handler.GetVms().OrderBy(static vm => vm.Id).Select(static vm => vm.Image), StringComparer.Ordinal);
        TestFolder.AssertPages(late, 0, 2000, 64);
        TestFolder.AssertPages(web, 0, 64);
        TestFolder.AssertPages(db, 0, 1000, 64);
        TestFolder.AssertPages(Connect("late.sock"), 0, 2000, 64);
        handler.Images[2].Remove(force: true);
        Assert.True(manager.WasTold(_ => !manager.KeptNames.Contains("late", StringComparison.Ordinal)), manager.KeptNames);
        foreach (var region in _regions) region.Dispose();
        Host.Until(() => handler.ConnectionCount == 0);
        handler.Stop();
    }

    [UffdFact]
    public void AnImageThatWasOverwrittenMeanwhileFailsAlone()
    {
        using var manager = new ServiceManager(_folder["notify"]);
        var first = StartImages(manager);
        var (web, db) = (Connect("web.sock"), Connect("db.sock"));
        TestFolder.AssertPages(web, 0, 16);
        TestFolder.AssertPages(db, 0, 1000, 16);
        Assert.True(manager.WasTold(_ => manager.Kept.Count == 16), manager.KeptNames);
        ServiceManager.Kill(first);
        using (var file = File.Open(_folder["db"], FileMode.Open, FileAccess.Write, FileShare.ReadWrite)) file.Write(new byte[4096]);
        manager.Told.Clear();
        StartImages(manager);
        var handler = Host.OnlyHandler();
        Assert.Equal([UffdImageState.Serving, UffdImageState.Failed], handler.Images.Select(static image => image.State));
        TestFolder.AssertPages(web, 0, 64);
        Assert.ThrowsAny<GuestMemoryException>(() => db.ReadExact(new GuestAddress(20 * 4096), new byte[8]));
        foreach (var region in _regions) region.Dispose();
        Host.Until(() => handler.ConnectionCount == 0);
        handler.Stop();
    }

    /// <summary>As FileDescriptorName= of each socket unit says.</summary>
    [UffdFact]
    public void SocketsAreTakenByTheNamesOfTheirImages()
    {
        using var manager = new ServiceManager(_folder["notify"]);
        var sockets = new List<Socket>();
        foreach (var name in new[] { "db", "web" })
        {
            var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            sockets.Add(socket);
            socket.Bind(new UnixDomainSocketEndPoint(_folder[$"unit-{name}.sock"]));
            socket.Listen();
            manager.Kept.Add((name, new SafeDescriptor(Fcntl.Duplicate((int)socket.Handle))));
        }

        StartImages(manager);
        var handler = Host.OnlyHandler();
        Assert.Equal([_folder["unit-web.sock"], _folder["unit-db.sock"]], handler.Images.Select(static image => image.SocketPath), StringComparer.Ordinal);
        TestFolder.AssertPages(Connect("unit-db.sock"), 0, 1000, 64);
        TestFolder.AssertPages(Connect("unit-web.sock"), 0, 64);
        foreach (var region in _regions) region.Dispose();
        handler.Stop();
        foreach (var socket in sockets) socket.Dispose();
    }

    private int StartImages(ServiceManager manager)
    {
        var arguments = new List<string> { "--strategy", "OnDemand" };
        foreach (var (name, number) in new[] { ("web", 0), ("db", 1000) })
        {
            if (!File.Exists(_folder[name])) _folder.WriteImage(name, 64, firstNumber: number);
            arguments.AddRange(["--images", $$"""{"name":"{{name}}","socket-path":"{{_folder[name + ".sock"]}}","memory-path":"{{_folder[name]}}"}"""]);
        }

        var process = manager.Start(runtime.Folder.Path, [.. arguments]);
        _processes.Add(process);
        Assert.True(manager.WasTold(text => text.Contains("READY=1", StringComparison.Ordinal)), manager.Log);
        return process;
    }

    private GuestMemoryMmap Connect(string socket)
    {
        var memory = Memory(64);
        UffdRegistration.Connect(_folder[socket], memory);
        return memory;
    }
}
