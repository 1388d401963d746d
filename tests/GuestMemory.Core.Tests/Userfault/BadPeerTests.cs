using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>What peers can do wrong: each gets its own error, loses only its own connection, and leaves nothing behind.</summary>
public sealed class BadPeerTests : IDisposable
{
    private const string Good = """[{"base_host_virt_addr":1048576,"size":4096,"offset":0,"page_size":4096,"page_size_kib":4096}]""";
    private readonly TestFolder _folder = new();
    private readonly UffdHandler _handler;
    private readonly HostResources _before;

    public BadPeerTests()
    {
        _folder.WriteImage("image", 4);
        _handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], HandoverTimeout = TimeSpan.FromSeconds(3) });
        _before = Host.Resources();
    }

    public void Dispose()
    {
        _handler.Dispose();
        _folder.Dispose();
    }

    private static (string Error, string Text, int Descriptors)[] Messages =>
    [
        ("without a descriptor", Good, 0),
        ("at most a memfd", Good, 2),
        ("at most a memfd", Good, 16),
        ("at most a memfd", Good, 200),
        ("JSON", "[{]", 1),
        ("JSON", "hello", 1),
        ("empty", "[]]", 1),
        ("empty", "[]", 1),
        ("JSON", "{\"a\":1}", 1),
        ("JSON", $"[\"{new string('x', 8000)}\"]", 1),
        ("image that is", Good.Replace("4096,\"offset\"", "40960,\"offset\"", StringComparison.Ordinal), 1),
        ("overlap", $"[{Good[1..^1]},{Good[1..^1]}]", 1),
        ("within 3 s", "[{\"base_host", 1),
        ("within 3 s", " ", 0),
    ];

    [UffdFact]
    public void EachIsAnsweredByItsError()
    {
        foreach (var (error, text, descriptors) in Messages)
        {
            var last = _handler.Error;
            using (var peer = new RawPeer(_handler.SocketPath))
            {
                peer.Send(text, descriptors);
                Host.Until(() => !ReferenceEquals(_handler.Error, last));
            }

            Assert.Contains(error, _handler.Error, StringComparison.Ordinal);
            AssertUnharmed();
        }
    }

    [UffdFact]
    public void TenMegabytesAreNotRead()
    {
        using (var peer = new RawPeer(_handler.SocketPath))
        {
            peer.Send("[" + string.Join(',', Enumerable.Repeat(Good[1..^1], 100_000)), 1);
            Host.Until(() => _handler.Error is not null);
        }

        Assert.Contains("at most", _handler.Error, StringComparison.Ordinal);
        AssertUnharmed();
    }

    [UffdFact]
    public void ADescriptorThatIsNoUserfaultfdIsRefused()
    {
        using (var peer = new RawPeer(_handler.SocketPath))
        using (var other = EventFd.Create())
        {
            peer.SendDescriptor(other, Good);
            Host.Until(() => _handler.Error is not null);
        }

        Assert.Contains("not a userfaultfd", _handler.Error, StringComparison.Ordinal);
        AssertUnharmed();
    }

    [UffdFact]
    public void APeerThatDiesHalfWayIsNoted()
    {
        using (var peer = new RawPeer(_handler.SocketPath)) peer.Send("[{\"base", 1);
        Host.Until(() => _handler.Error is not null);
        Assert.Contains("in the middle of the hand-over", _handler.Error, StringComparison.Ordinal);
        AssertUnharmed();
    }

    [UffdFact]
    public void APeerThatSaysNothingAndGoesIsNoError()
    {
        new RawPeer(_handler.SocketPath).Dispose();
        AssertUnharmed();
        Assert.Null(_handler.Error);
    }

    [UffdFact]
    public void AMessageInPiecesIsPutTogether()
    {
        var data = Encoding.UTF8.GetBytes(" \n" + Good + "\n");
        using (var peer = new RawPeer(_handler.SocketPath))
        {
            for (var i = 0; i < data.Length; i++) peer.Send(data.AsSpan(i, 1), i == 2 ? 1 : 0);
            Host.Until(() => _handler.ConnectionCount == 1);
            Assert.Equal(1, _handler.ConnectionCount);
        }

        AssertUnharmed();
        Assert.Null(_handler.Error);
    }

    [UffdFact]
    public void TwoMessagesGluedTogetherAreTwoVms()
    {
        using (var peer = new RawPeer(_handler.SocketPath))
        {
            // The beginning and its descriptor; then its end together with the next one and the next one's descriptor.
            peer.Send(Good[..20], 1);
            peer.Send(Good[20..], 0);
            peer.Send(Good + " " + Good[..^1], 1);
            Host.Until(() => _handler.ConnectionCount == 2);
            Assert.Equal(2, _handler.ConnectionCount);
            Assert.Null(_handler.Error);
        }

        Host.Until(() => _handler.ConnectionCount == 0);
        AssertUnharmed();
    }

    /// <summary>firecracker-uffd.md 11.3: a second hand-over on the same stream is a second VM; a wrong one is refused, and the VMs go on.</summary>
    [UffdFact]
    public void V11_3_SeveralHandoversOnOneStream()
    {
        using (var peer = new RawPeer(_handler.SocketPath))
        {
            peer.Send(Good, 1);
            Host.Until(() => _handler.ConnectionCount == 1);
            Assert.Equal(1, _handler.ConnectionCount);
            peer.Send(Good, 1);
            Host.Until(() => _handler.ConnectionCount == 2);
            Assert.Equal(2, _handler.ConnectionCount);
            peer.Send(Good.Replace("\"size\":4096", "\"size\":0", StringComparison.Ordinal), 1);
            Host.Until(() => _handler.Error is not null);
            Assert.Equal(2, _handler.ConnectionCount);
        }

        Assert.Contains("no bytes", _handler.Error, StringComparison.Ordinal);
        Host.Until(() => _handler.ConnectionCount == 0);
        AssertUnharmed();
    }

    [UffdFact]
    public void APeerThatSendsBlanksWithoutEndIsCutOff()
    {
        using (var peer = new RawPeer(_handler.SocketPath))
        {
            var blanks = new byte[1 << 20];
            blanks.AsSpan().Fill((byte)' ');
            var flood = new Thread(() =>
            {
                while (!peer.IsHungUp) peer.Send(blanks, 0);
            });
            flood.Start();
            Host.Until(() => _handler.Error is not null);
            flood.Join();
        }

        Assert.Contains("within 3 s", _handler.Error, StringComparison.Ordinal);
        AssertUnharmed();
    }

    /// <summary>Whether a userfaultfd waits is a property of what both sides have duplicates of.</summary>
    [UffdFact]
    public void APeerThatMakesItsUserfaultfdBlockingIsInNobodysWay()
    {
        using (var other = new GuestRegionMmap(new MmapRegionBuilder(16384).Build(), new GuestAddress(0)))
        using (var region = new GuestRegionMmap(new MmapRegionBuilder(16384).Build(), new GuestAddress(0)))
        using (var peer = new RawPeer(_handler.SocketPath, region))
        {
            var others = GuestMemoryMmap.FromRegions([other]);
            UffdRegistration.Connect(_handler.SocketPath, others);
            peer.Send([new GuestRegionUffdMapping(region.HostAddress, 16384, 0, 4096)]);
            Host.Until(() => _handler.ConnectionCount == 2);
            peer.MakeBlocking();
            var address = (nint)region.HostAddress;
            for (var page = 0; page < 4; page++)
            {
                // Outside managed code: the handler is in this process.
                var at = address + (page * 4096);
                Assert.True(Task.Run(() => Assert.Equal(0, Mman.TryAdvise(at, 4096, Mman.MADV_POPULATE_READ))).Wait(Host.Patience));
                peer.MakeBlocking();
                // Nothing is to be read from the blocking one now, and the other VM is served all the same.
                TestFolder.AssertPages(others, page, 1);
            }
        }

        Host.Until(() => _handler.ConnectionCount == 0);
        AssertUnharmed();
    }

    [Fact]
    public void TheSocketIsForItsOwnerAlone()
    {
        Assert.Equal(0, FileStatus.TryGet(_handler.SocketPath, out var status));
        Assert.Equal(FileStatus.S_IFSOCK | 0b110_000_000, status.stx_mode);
    }

    [Fact]
    public void PathsThatCannotBeListenedAt()
    {
        GuestMemoryError At(string path, bool force = false) => Assert.ThrowsAny<GuestMemoryException>(() =>
            UffdHandler.Start(new UffdHandlerOptions { SocketPath = path, MemoryPath = _folder["image"], Force = force })).Error;
        Assert.Equal(GuestMemoryError.SocketInUse, At(_handler.SocketPath));
        Assert.Equal(GuestMemoryError.NotASocket, At(_folder["image"], force: true));
        Assert.Equal(GuestMemoryError.SocketPathTooLong, At(_folder[new string('x', 108)]));
        Assert.Equal(GuestMemoryError.SocketNotFound, At(_folder["no/such/h.sock"]));
        Directory.CreateDirectory(_folder["open"]);
        Assert.Equal(0, Compiler.Run("chmod", "0777", _folder["open"]).Code);
        Assert.Equal(GuestMemoryError.InsecureDirectory, At(_folder["open/h.sock"]));
        Assert.Equal(4 * 4096, new FileInfo(_folder["image"]).Length);
        Assert.Equal(UffdHandlerState.Listening, _handler.State);
        AssertNothingIsLeft();
    }

    [Fact]
    public void ASocketThatWasLeftBehindIsReplaced()
    {
        using (var left = UnixSocket.Create(nonBlocking: true)) Assert.Equal(0, UnixSocket.TryBind(left, _folder["left.sock"]));
        Assert.True(File.Exists(_folder["left.sock"]));
        using var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["left.sock"], MemoryPath = _folder["image"] });
        Assert.Equal(UffdHandlerState.Listening, handler.State);
    }

    [Fact]
    public void ImagesThatCannotBeServed()
    {
        GuestMemoryError Of(string path) => Assert.ThrowsAny<GuestMemoryException>(() =>
            UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["i.sock"], MemoryPath = path })).Error;
        File.WriteAllText(_folder["empty"], "");
        Assert.Equal(GuestMemoryError.ImageNotFound, Of(_folder["none"]));
        Assert.Equal(GuestMemoryError.ImageUnreadable, Of(_folder["empty"]));
        Assert.Equal(GuestMemoryError.ImageUnreadable, Of(_folder.Path));
        Assert.False(File.Exists(_folder["i.sock"]));
    }

    [Fact]
    public void SocketsThatCannotBeConnectedTo()
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        GuestMemoryError To(string path) => Assert.ThrowsAny<GuestMemoryException>(() => UffdRegistration.Connect(path, memory)).Error;
        using (var left = UnixSocket.Create(nonBlocking: true)) Assert.Equal(0, UnixSocket.TryBind(left, _folder["left.sock"]));
        Assert.Equal(GuestMemoryError.SocketNotFound, To(_folder["none"]));
        Assert.Equal(GuestMemoryError.NotASocket, To(_folder["image"]));
        Assert.Equal(GuestMemoryError.ConnectionRefused, To(_folder["left.sock"]));
        Assert.Equal(GuestMemoryError.SocketPathTooLong, To(_folder[new string('x', 108)]));
        Assert.False(region.GetMmapRegion().IsGuarded);
        AssertNothingIsLeft();
    }

    /// <summary>A good VM is served as if nothing had been, and nothing of the bad one is left.</summary>
    private void AssertUnharmed()
    {
        using (var region = new GuestRegionMmap(new MmapRegionBuilder(16384).Build(), new GuestAddress(0)))
        {
            var memory = GuestMemoryMmap.FromRegions([region]);
            UffdRegistration.Connect(_handler.SocketPath, memory);
            TestFolder.AssertPages(memory, 2, 1);
        }

        AssertNothingIsLeft();
        Assert.Equal(0, _handler.ConnectionCount);
    }

    private void AssertNothingIsLeft() => Host.AssertNoneLeft(_before);
}
