namespace GuestMemory.Core.Tests;

/// <summary>Several images in one handler, in this process and in a process of its own: each VM has the memory of the socket that it connected to.</summary>
[Collection(RuntimeFolder.Name)]
public sealed partial class ImagesTests(RuntimeFolder runtime) : VmFixture(runtime)
{
    private const int Pages = 32;
    private const int Far = 1000;

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void EachVmHasTheMemoryOfItsSocket(bool process)
    {
        var handler = Start(process);
        Assert.Equal((null, null), (handler.SocketPath, handler.MemoryPath));
        Assert.Equal([("web", Folder["web.sock"], Folder["web"], UffdImageState.Serving, 0), ("db", Folder["db.sock"], Folder["db"], UffdImageState.Serving, 0)],
            handler.Images.Select(static image => (image.Name, image.SocketPath, image.MemoryPath, image.State, image.ConnectionCount)));
        var (web, db) = (Connect("web"), Connect("db"));
        AssertImage(db, 1);
        AssertImage(web, 0);
        Host.Until(() => handler.FaultCount == 2 * Pages);
        Assert.Equal([(1, "web-1", "web", Folder["web.sock"]), (2, "db-2", "db", Folder["db.sock"])], handler.GetVms().Select(static vm => (vm.Id, vm.Name, vm.Image, vm.SocketPath)));
        Assert.Equal([1, 1], handler.Images.Select(static image => image.ConnectionCount));
        Assert.Equal($"{Folder["web.sock"]} and {Folder["db.sock"]}", handler.ToString());
        handler.Stop();
        Assert.False(File.Exists(Folder["web.sock"]) || File.Exists(Folder["db.sock"]));
        if (process) Assert.Equal(1, handler.WorkerCount);
    }

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void ImagesComeAndGoWhileOthersAreServed(bool process)
    {
        var before = Host.Resources();
        var handler = Start(process, "web");
        Assert.Equal(Folder["web.sock"], handler.SocketPath ?? handler.Images[0].SocketPath);
        var web = Connect("web");
        AssertImage(web, 0, Pages / 2);
        var added = handler.AddImage(Image("db"));
        Assert.Equal(("db", Folder["db.sock"], UffdImageState.Serving), (added.Name, added.SocketPath, added.State));
        var db = Connect("db");
        AssertImage(db, 1, Pages / 2);
        Host.Until(() => handler.Images.All(static image => image.ConnectionCount == 1));
        AssertError(GuestMemoryError.VmsInService, () => handler.Images[1].Remove());
        AssertImage(Connect("db"), 1);
        Regions[1].Dispose();
        Regions[2].Dispose();
        Host.Until(() => handler.Images[1].ConnectionCount == 0);
        var faults = handler.FaultCount;
        handler.Images[1].Remove();
        Assert.Equal("web", Assert.Single(handler.Images).Name);
        Assert.False(File.Exists(Folder["db.sock"]));
        // What was counted stays counted.
        Assert.True(handler.FaultCount >= faults && faults >= Pages * 2);
        AssertError(GuestMemoryError.UffdImageNotFound, () => added.Remove());
        AssertError(GuestMemoryError.ValueNotSupported, () => handler.Images[0].Remove(force: true));
        // The name and the socket are free again, for another file too.
        Host.Until(() => TryWrite("db", 5 * Far));
        handler.AddImage(Image("db"));
        AssertImage(Connect("db"), 5);
        AssertImage(web, 0);
        Assert.Null(handler.Error);
        foreach (var region in Regions) region.Dispose();
        handler.Stop();
        handler.Dispose();
        if (!process) Host.AssertNoneLeft(before);
    }

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void VmsOfAnImageThatIsForcedAwayAreGivenUp(bool process)
    {
        var handler = Start(process);
        var (web, db) = (Connect("web"), Connect("db"));
        AssertImage(web, 0, 4);
        AssertImage(db, 1, 4);
        Host.Until(() => handler.ConnectionCount == 2);
        handler.Images[1].Remove(force: true);
        Assert.Equal("web", Assert.Single(handler.Images).Name);
        AssertImage(db, 1, 4);
        Assert.ThrowsAny<GuestMemoryException>(() => db.ReadExact(new GuestAddress(8 * 4096), new byte[8]));
        AssertImage(web, 0);
        Assert.Equal("web-1", Assert.Single(handler.GetVms()).Name);
    }

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void AnImageThatCannotBeAddedChangesNothing(bool process)
    {
        var handler = Start(process, "web");
        var web = Connect("web");
        AssertImage(web, 0, 4);
        File.WriteAllText(Folder["broken"], "GMCHUNK1" + new string('x', 100));
        File.WriteAllText(Folder["full"], "x");
        foreach (var (image, error) in new[]
        {
            (Image("web"), GuestMemoryError.NameInUse),
            (Image("WEB") with { SocketPath = Folder["other.sock"] }, GuestMemoryError.NameInUse),
            (Image("db") with { SocketPath = Folder["web.sock"] }, GuestMemoryError.NameInUse),
            (Image("a/b"), GuestMemoryError.ValueNotSupported),
            (Image("7"), GuestMemoryError.ValueNotSupported),
            (Image("db") with { MemoryPath = "" }, GuestMemoryError.ValueNotSupported),
            (Image("db") with { MemoryPath = Folder["none"] }, GuestMemoryError.ImageNotFound),
            (Image("db") with { MemoryPath = Folder["broken"] }, GuestMemoryError.InvalidImage),
            (Image("db") with { SocketPath = Folder["full"] }, GuestMemoryError.NotASocket),
            (Image("db") with { SocketPath = Folder[new string('x', 108)] }, GuestMemoryError.SocketPathTooLong),
            (Image("db") with { RecordPath = Folder["none/record"] }, GuestMemoryError.InvalidRecord),
            (Image("db") with { ReplayPath = Folder["none"] }, process ? GuestMemoryError.RecordNotFound : GuestMemoryError.ValueNotSupported),
        })
        {
            AssertError(error, () => handler.AddImage(image));
            Assert.Equal("web", Assert.Single(handler.Images).Name);
            Assert.False(File.Exists(Folder["db.sock"]));
        }

        Assert.Equal("x", File.ReadAllText(Folder["full"]));
        handler.AddImage(Image("db"));
        AssertImage(Connect("db"), 1);
        AssertImage(web, 0);
        if (process) Assert.Equal(1, handler.WorkerCount);
    }

    [Fact]
    public void OptionsThatContradictEachOtherAreRefused()
    {
        Folder.WriteImage("web", Pages);
        foreach (var (options, error) in new[]
        {
            (new UffdHandlerOptions { MemoryPath = Folder["web"] }, GuestMemoryError.ValueNotSupported),
            (new UffdHandlerOptions { SocketPath = Folder["h.sock"] }, GuestMemoryError.ValueNotSupported),
            (new UffdHandlerOptions { SocketPath = Folder["h.sock"], Images = [Image("web")] }, GuestMemoryError.ValueNotSupported),
            (new UffdHandlerOptions { RecordPath = Folder["record"], Images = [Image("web")] }, GuestMemoryError.ValueNotSupported),
            (new UffdHandlerOptions { Images = [Image("web"), Image("Web") with { SocketPath = Folder["a.sock"] }] }, GuestMemoryError.NameInUse),
            (new UffdHandlerOptions { Images = [Image("web"), Image("db") with { SocketPath = Folder["web.sock"] }] }, GuestMemoryError.NameInUse),
            (new UffdHandlerOptions { Strategy = UffdStrategy.OnDemand, Images = [Image("web") with { RecordPath = Folder["r"] }, Image("db") with { RecordPath = Folder["r"] }] }, GuestMemoryError.NameInUse),
            (new UffdHandlerOptions { Images = [.. Enumerable.Range(0, 257).Select(i => Image($"web{i}"))] }, GuestMemoryError.ValueNotSupported),
            (new UffdHandlerOptions { Images = [Image("web"), Image("none")] }, GuestMemoryError.ImageNotFound),
        })
        {
            AssertError(error, () => UffdHandler.Start(options));
            AssertError(error, () => UffdHandler.StartProcess(options));
            Assert.False(File.Exists(Folder["web.sock"]));
        }
    }

    [Fact]
    public void ImagesGoThroughTheCommandLine()
    {
        var options = new UffdHandlerOptions { Images = [Image("web") with { LayerPaths = ["/a b", "/\"c\""], RecordPath = "/r" }, Image("db")], Strategy = UffdStrategy.OnDemand };
        var read = UffdArguments.Parse([.. UffdArguments.From(options)]);
        Assert.Equal(options.Images.Select(static image => (image.Name, image.SocketPath, image.MemoryPath, string.Join('|', image.LayerPaths), image.RecordPath)),
            read.Images.Select(static image => (image.Name, image.SocketPath, image.MemoryPath, string.Join('|', image.LayerPaths), image.RecordPath)));
        foreach (var wrong in new[] { "web", "null", "[]", "{}", "{\"name\":\"a\"}", "{\"name\":\"a\",\"socket-path\":\"b\",\"memory-path\":3}" })
            AssertError(GuestMemoryError.ValueNotSupported, () => UffdArguments.Parse(["--images", wrong]));
    }

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void EachImageHasItsOwnRecord(bool process)
    {
        foreach (var (name, number) in new[] { ("web", 0), ("db", Far) }) Folder.WriteImage(name, Pages, firstNumber: number);
        var handler = Start(process, new UffdHandlerOptions { Strategy = UffdStrategy.OnDemand, Images = [Image("web") with { RecordPath = Folder["web.rec"] }] });
        handler.AddImage(Image("db") with { RecordPath = Folder["db.rec"] });
        var (web, db) = (Connect("web"), Connect("db"));
        AssertImage(web, 0, 3);
        AssertImage(db, 1, 5);
        foreach (var region in Regions) region.Dispose();
        Host.Until(() => TouchRecord.Load(Folder["web.rec"], Pages * 4096).Length == 3 && TouchRecord.Load(Folder["db.rec"], Pages * 4096).Length == 5);
        handler.Stop();
        // What the VM of one image touched comes first to the next VM of it.
        handler = Start(process, new UffdHandlerOptions { Strategy = UffdStrategy.Replay, Images = [Image("web") with { ReplayPath = Folder["web.rec"] }, Image("db") with { ReplayPath = Folder["db.rec"] }] });
        (web, db) = (Connect("web"), Connect("db"));
        Host.Until(() => string.Join(' ', handler.GetVms().Select(static vm => vm.Figures.PresentPageCount)) == "3 5");
        AssertImage(web, 0);
        AssertImage(db, 1);
    }

    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void LimitsAreThoseOfAllImagesTogether(bool process)
    {
        foreach (var (name, number) in new[] { ("web", 0), ("db", Far) }) Folder.WriteImage(name, Pages, firstNumber: number);
        var handler = Start(process, new UffdHandlerOptions { Strategy = UffdStrategy.OnDemand, MaxConnections = 1, MetricsPath = Folder["metrics"], Images = [Image("web"), Image("db")] });
        var web = Connect("web");
        AssertImage(web, 0, 4);
        try
        {
            Connect("db");
        }
        catch (GuestMemoryException)
        {
            // It may be turned away before it has handed its memory over, or afterwards.
        }

        Host.Until(() => handler.Error?.Contains("MaxConnections", StringComparison.Ordinal) == true);
        AssertImage(web, 0);
        Host.Until(() => handler.FaultCount == Pages);
        var text = UffdFiguresText.ToOpenMetrics([.. handler.Images.Select(image => handler.GetFigures() with { Image = image.Name, SocketPath = image.SocketPath })]);
        Assert.Contains($"guestmemory_uffd_vms{{socket=\"{Folder["db.sock"]}\",image=\"db\"}}", text, StringComparison.Ordinal);
        Assert.Contains($"guestmemory_uffd_vms{{socket=\"{Folder["web.sock"]}\",image=\"web\"}} 1\n", Metrics(), StringComparison.Ordinal);
        Assert.Contains($"guestmemory_uffd_vms{{socket=\"{Folder["db.sock"]}\",image=\"db\"}} 0\n", Metrics(), StringComparison.Ordinal);
        Assert.Contains($"guestmemory_uffd_faults_total{{socket=\"{Folder["web.sock"]}\",image=\"web\",outcome=\"copied\"}} {Pages}\n", Metrics(), StringComparison.Ordinal);
    }

    private string Metrics()
    {
        using var socket = new System.Net.Sockets.Socket(System.Net.Sockets.AddressFamily.Unix, System.Net.Sockets.SocketType.Stream, System.Net.Sockets.ProtocolType.Unspecified);
        socket.Connect(new System.Net.Sockets.UnixDomainSocketEndPoint(Folder["metrics"]));
        socket.Send("GET /metrics HTTP/1.0\r\n\r\n"u8);
        using var stream = new System.Net.Sockets.NetworkStream(socket);
        using var reader = new StreamReader(stream);
        return reader.ReadToEnd();
    }

    private UffdImageOptions Image(string name) => new() { Name = name, SocketPath = Folder[name.Replace('/', '-') + ".sock"], MemoryPath = Folder[name.Replace('/', '-')] };

    /// <summary>A handler of images; the pages of the second one have numbers from <see cref="Far"/> on.</summary>
    private UffdHandler Start(bool process, params string[] names)
    {
        foreach (var (name, number) in new[] { ("web", 0), ("db", Far) }) Folder.WriteImage(name, Pages, firstNumber: number);
        return Start(process, new UffdHandlerOptions { Strategy = UffdStrategy.OnDemand, Images = [.. (names.Length > 0 ? names : ["web", "db"]).Select(Image)] });
    }

    /// <summary>A worker closes what it had of an image a moment after the supervisor.</summary>
    private bool TryWrite(string name, int number)
    {
        try
        {
            Folder.WriteImage(name, Pages, firstNumber: number);
            return true;
        }
        catch (IOException)
        {
            return false;
        }
    }

    private GuestMemoryMmap Connect(string image)
    {
        var memory = GuestMemoryMmap.FromRegions([Region(new MmapRegionBuilder(Pages * 4096))]);
        UffdRegistration.Connect(Folder[image + ".sock"], memory);
        return memory;
    }

    private static void AssertImage(GuestMemoryMmap memory, int number, int count = Pages) => TestFolder.AssertPages(memory, 0, number * Far, count);

    private static void AssertError(GuestMemoryError error, Action action) => Assert.Equal(error, Assert.ThrowsAny<GuestMemoryException>(action).Error);
}
