using System.Buffers.Binary;
using System.Net;
using System.Net.Sockets;
using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>Memory over NBD, to a client that is written here and to those of libnbd and QEMU in tests/Integration/Nbd.Tests.ps1.</summary>
public sealed class MemoryExportTests : IDisposable
{
    private const ulong High = 1UL << 32;

    private readonly TestFolder _folder = new();
    private readonly GuestMemoryMmap _memory = GuestMemoryMmap.FromRanges([(new GuestAddress(0x1000), 3 << 20), (new GuestAddress(High), 1 << 20)]);
    private readonly byte[] _low = new byte[3 << 20], _high = new byte[1 << 20];

    public MemoryExportTests()
    {
        new Random(1).NextBytes(_low);
        new Random(2).NextBytes(_high);
        _memory.WriteExact(new GuestAddress(0x1000), _low);
        _memory.WriteExact(new GuestAddress(High), _high);
    }

    public void Dispose()
    {
        foreach (var region in _memory.Regions) region.Dispose();
        _folder.Dispose();
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void OffsetsAreGuestAddressesAndHolesAreZeros(bool isStructured)
    {
        using var export = Start();
        using var client = new NbdClient(export.SocketPath!).Go(isStructured);
        Assert.Equal(High + (1 << 20), client.Size);
        Assert.Equal(export.Size, client.Size);
        // Read-only, several connections.
        Assert.Equal(isStructured ? 0b1_1000_0111 : 0b1_0000_0111, client.Flags);
        byte[] expected = [.. new byte[0x1000], .. _low, .. new byte[0x1000]];
        if (isStructured)
        {
            Assert.Equal(expected, client.Read(0, (uint)expected.Length));
            Assert.Equal([.. new byte[100], .. _high], client.Read(High - 100, 100 + (1 << 20)));
        }
        else
        {
            client.SendRequest(0, 0, (uint)expected.Length);
            Assert.Equal(0u, client.ReceiveSimple());
            Assert.Equal(expected, client.Receive(expected.Length));
        }

        Assert.True(export.ByteCount >= _low.Length);
    }

    [Fact]
    public void PackedRegionsAreThoseOfARawImage()
    {
        using var export = Start(isPacked: true);
        using var client = new NbdClient(export.SocketPath!).Go();
        Assert.Equal((ulong)(_low.Length + _high.Length), client.Size);
        Assert.Equal([.. _low[^1000..], .. _high[..1000]], client.Read((ulong)_low.Length - 1000, 2000));
    }

    [Fact]
    public void OneChunkWhereTheClientWantsOne()
    {
        using var export = Start();
        using var client = new NbdClient(export.SocketPath!).Go();
        client.SendRequest(0, 0, 3 << 20, flags: 4);
        var chunk = Assert.Single(client.ReceiveChunks());
        Assert.Equal((1, (3 << 20) + 8), (chunk.Type, chunk.Data.Length));
        Assert.Equal([.. new byte[0x1000], .. _low[..^0x1000]], chunk.Data[8..]);
    }

    [Fact]
    public void HolesAreToldByTheBlockStatus()
    {
        using var export = Start();
        using var client = new NbdClient(export.SocketPath!).Go();
        client.SendRequest(7, 0, uint.MaxValue);
        var status = Assert.Single(client.ReceiveChunks());
        Assert.Equal(5, status.Type);
        Assert.Equal([1, 0x1000, 3, 3 << 20, 0, uint.MaxValue - 0x1000 - (3 << 20), 3], Enumerable.Range(0, status.Data.Length / 4).Select(place => BinaryPrimitives.ReadUInt32BigEndian(status.Data.AsSpan(4 * place))));
        client.SendRequest(7, 0x800, 0x10000, flags: 8);
        Assert.Equal(12, Assert.Single(client.ReceiveChunks()).Data.Length);
        // Without the context no client may ask.
        using var other = new NbdClient(export.SocketPath!).Go(isStructured: false);
        other.SendRequest(7, 0, 4096);
        Assert.Equal(22u, other.ReceiveSimple());
    }

    [Fact]
    public void NothingIsWritten()
    {
        using var export = Start();
        using var client = new NbdClient(export.SocketPath!).Go(isStructured: false);
        foreach (var type in new ushort[] { 1, 4, 6 })
        {
            client.SendRequest(type, 0x1000, 64);
            if (type == 1) client.Send(new byte[64]);
            Assert.Equal(1u, client.ReceiveSimple());
        }

        client.SendRequest(3, 0, 0);
        Assert.Equal(0u, client.ReceiveSimple());
        client.SendRequest(99, 0, 0);
        Assert.Equal(22u, client.ReceiveSimple());
        client.SendRequest(0, export.Size - 10, 11);
        Assert.Equal(22u, client.ReceiveSimple());
        client.SendRequest(0, ulong.MaxValue, 1);
        Assert.Equal(22u, client.ReceiveSimple());
        client.SendRequest(0, 0, 33 << 20);
        Assert.Equal(75u, client.ReceiveSimple());
        client.SendRequest(2, 0, 0);
        Assert.True(client.Ends());
        var low = new byte[64];
        _memory.ReadExact(new GuestAddress(0x1000), low);
        Assert.Equal(_low[..64], low);
    }

    [Fact]
    public void TheNegotiationFollowsTheProtocol()
    {
        using var export = Start();
        using var client = new NbdClient(export.SocketPath!).Greet();
        client.SendOption(3);
        Assert.Equal((2u, "vm"), client.ReceiveReply(3) is var server ? (server.Type, Encoding.ASCII.GetString(server.Data[4..])) : default);
        Assert.Equal(1u, client.ReceiveReply(3).Type);
        Check(3, [1], 0x80000003);
        Check(5, [], 0x80000001);
        Check(6, [.. NbdClient.Text("another"), 0, 0], 0x80000006);
        Check(6, [0, 0, 0, 9, 0, 0], 0x80000003);
        Check(6, [0xff, 0xff, 0xff, 0xff, 0, 0], 0x80000003);
        Check(6, [.. NbdClient.Text("vm"), 0, 2, 0, 1], 0x80000003);
        Check(10, [.. NbdClient.Text("vm"), 0, 0, 0, 0], 0x80000003);
        Check(8, [1], 0x80000003);
        Check(8, [], 1);
        Check(10, [.. NbdClient.Text("vm"), 0xff, 0xff, 0xff, 0xff], 0x80000003);
        Check(10, [.. NbdClient.Text("vm"), 0, 0, 0, 1, .. NbdClient.Text("qemu:dirty-bitmap:x")], 1);
        client.SendOption(9, [.. NbdClient.Text("vm"), 0, 0, 0, 0]);
        Assert.Equal(4u, client.ReceiveReply(9).Type);
        Assert.Equal(1u, client.ReceiveReply(9).Type);
        client.SendOption(6, new byte[70_000]);
        Assert.Equal(0x80000009, client.ReceiveReply(6).Type);
        client.SendOption(6, [.. NbdClient.Text("vm"), 0, 3, 0, 1, 0, 3, 0, 77]);
        Assert.Equal([0, 1, 3], Enumerable.Range(0, 3).Select(_ => client.ReceiveReply(6).Data[1]));
        Assert.Equal(1u, client.ReceiveReply(6).Type);
        Check(2, [], 1);
        Assert.True(client.Ends());

        // As the oldest clients do.
        using var old = new NbdClient(export.SocketPath!).Greet(flags: 1);
        old.SendOption(1, "vm"u8.ToArray());
        Assert.Equal(NbdClient.Big(export.Size), old.Receive(10 + 124)[..8]);
        old.SendRequest(0, 0x1000, 16);
        Assert.Equal(0u, old.ReceiveSimple());
        Assert.Equal(_low[..16], old.Receive(16));

        void Check(uint option, byte[] data, uint expected)
        {
            client.SendOption(option, data);
            Assert.Equal(expected, client.ReceiveReply(option).Type);
        }
    }

    [Fact]
    public void WhoContradictsTheProtocolIsAlone()
    {
        using var export = Start();
        using var good = new NbdClient(export.SocketPath!).Go();
        Action<NbdClient>[] bad =
        [
            static client => client.Greet(flags: 0x80),
            static client => client.Greet().Send(new byte[16]),
            static client => client.Greet().SendOption(1, "another"u8.ToArray()),
            static client => client.Greet().Send([.. "IHAVEOPT"u8, 0, 0, 0, 6, 0xff, 0xff, 0xff, 0xff]),
            static client => client.Go().Send(new byte[28]),
            static client => client.Go().SendRequest(1, 0, uint.MaxValue),
        ];
        foreach (var act in bad)
        {
            using var client = new NbdClient(export.SocketPath!);
            act(client);
            Assert.True(client.Ends());
            Assert.Equal(_low[..16], good.Read(0x1000, 16));
        }

        using (var endless = new NbdClient(export.SocketPath!).Greet())
        {
            for (var i = 0; i < 256; i++) endless.SendOption(99);
            Assert.True(endless.Ends());
        }

        // These ask for more than the sockets hold, and take nothing.
        var lazy = Enumerable.Range(0, 8).Select(_ => new NbdClient(export.SocketPath!).Go()).ToArray();
        foreach (var client in lazy) client.SendRequest(0, 0x1000, 3 << 20);
        Assert.Equal(_low, good.Read(0x1000, 3 << 20));
        foreach (var client in lazy) client.Dispose();
        Host.Until(() => export.ConnectionCount == 1);
        Assert.NotNull(export.Error);
    }

    [Fact]
    public void MemoryThatIsGoneIsAnErrorToTheClient()
    {
        using var export = Start();
        using var client = new NbdClient(export.SocketPath!).Go();
        using var simple = new NbdClient(export.SocketPath!).Go(isStructured: false);
        _memory.Regions[1].Dispose();
        Assert.Equal(5u, client.ReadError(High, 4096));
        simple.SendRequest(0, High, 4096);
        Assert.Equal(5u, simple.ReceiveSimple());
        Assert.Equal(_low[..16], client.Read(0x1000, 16));
        Assert.Contains("removed", export.Error, StringComparison.Ordinal);
        // What is read before the error in one answer, too.
        _memory.Regions[0].Dispose();
        Assert.Equal(5u, client.ReadError(0, 1 << 20));
    }

    [Fact]
    public void TheEndOfTheExportEndsItsClients()
    {
        var before = Host.Resources();
        var export = Start();
        using (var idle = new NbdClient(export.SocketPath!).Go())
        using (var negotiating = new NbdClient(export.SocketPath!).Greet())
        using (var lazy = new NbdClient(export.SocketPath!).Go())
        {
            lazy.SendRequest(0, 0x1000, 3 << 20);
            Host.Until(() => export.ConnectionCount == 3);
            export.Dispose();
            Assert.Equal(MemoryExportState.Stopped, export.State);
            Assert.True(idle.Ends() && negotiating.Ends() && lazy.Ends());
            Assert.False(File.Exists(export.SocketPath));
            Assert.Equal(0, export.ConnectionCount);
            Assert.Null(export.Error);
        }

        Assert.Null(Record.Exception(export.Dispose));
        Host.AssertNoneLeft(before);
    }

    [Fact]
    public void APortServesThoseWhoMayAlone()
    {
        using var export = MemoryExport.Start(_memory, new MemoryExportOptions { Name = "vm" });
        Assert.Equal($"nbd://127.0.0.1:{export.Port}/", export.Uri);
        using var client = new NbdClient(export.Port!.Value).Go();
        Assert.Equal(_low[..16], client.Read(0x1000, 16));
        Assert.Equal(GuestMemoryError.PortInUse, Assert.Throws<GuestMemoryException>(() => MemoryExport.Start(_memory, new MemoryExportOptions { Name = "b", Port = export.Port.Value })).Error);
    }

    /// <summary>Another user may have connected from the same port before: to another address, or so that the kernel says user 0 of it.</summary>
    [Fact]
    public void TheUserOfAPortIsThatOfItsConnectionAlone()
    {
        var (near, far) = (new IPEndPoint(IPAddress.Loopback, 0x2a90), new IPEndPoint(IPAddress.Loopback, 0xc350));
        string[] lines =
        [
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
            "   0: 0100007F:C350 0200007F:2A90 06 00000000:00000000 03:00000F9F 00000000     0        0 0 3 0000000000000000",
            "   1: 0100007F:C350 0200007F:2A90 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 20 4 30 10 -1",
            "   2: 0100007F:C350 0100007F:2A90 06 00000000:00000000 03:00000F9F 00000000     0        0 0 3 0000000000000000",
            "   3: 0100007F:C350 0100007F:2A90 01 00000000:00000000 00:00000000 00000000     0        0 0 1 0000000000000000 20 4 30 10 -1",
            "   4: 0100007F:2A90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000 20 4 30 10 -1",
        ];
        Assert.Null(MemoryExport.UserOf(lines, near, far));
        Assert.Equal(65534u, MemoryExport.UserOf([.. lines, "   5: 0100007F:C350 0100007F:2A90 01 00000000:00000000 00:00000000 00000000 65534        0 4713 1 0000000000000000 20 4 30 10 -1"], near, far));
    }

    [Fact]
    public void ANegotiationHasOneLimitForAllOfIt()
    {
        using var export = MemoryExport.Start(_memory, new MemoryExportOptions { Name = "vm", SocketPath = _folder["nbd.sock"], NegotiationLimit = TimeSpan.FromMilliseconds(500) });
        using var client = new NbdClient(export.SocketPath!).Greet();
        client.Send([.. "IHAVEOPT"u8, .. NbdClient.Big(99u), .. NbdClient.Big(60_000u)]);
        // A byte at a time.
        Host.Until(() =>
        {
            try
            {
                client.Send(new byte[1]);
                return false;
            }
            catch (SocketException)
            {
                return true;
            }
        });
        Host.Until(() => export.ConnectionCount == 0);
        Assert.Contains("negotiation", export.Error, StringComparison.Ordinal);
    }

    [OtherUserFact]
    public void APortRefusesOtherUsers()
    {
        using var export = MemoryExport.Start(_memory, new MemoryExportOptions { Name = "vm" });
        // Who may not connect hears nothing, not even the greeting.
        var (code, text) = Compiler.Run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c", $"exec 3<>/dev/tcp/127.0.0.1/{export.Port}; head -c 8 <&3");
        Assert.DoesNotContain("NBDMAGIC", text, StringComparison.Ordinal);
        Host.Until(() => export.Error is not null);
        Assert.Contains("65534", export.Error, StringComparison.Ordinal);
        using var open = MemoryExport.Start(_memory, new MemoryExportOptions { Name = "open", AllowUser = ["65534"] });
        (code, text) = Compiler.Run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c", $"exec 3<>/dev/tcp/127.0.0.1/{open.Port}; head -c 8 <&3");
        Assert.Equal((0, "NBDMAGIC"), (code, text));
    }

    [Fact]
    public void MemoryThatCannotBeExportedIsRefused()
    {
        Assert.Equal(GuestMemoryError.NoMemoryRegion, Assert.Throws<GuestMemoryException>(() => MemoryExport.Start(GuestMemoryMmap.Empty, new MemoryExportOptions { Name = "a" })).Error);
        var top = GuestMemoryMmap.FromRanges([(new GuestAddress(ulong.MaxValue - 0x1ffff), 0x10000)]);
        Assert.Equal(GuestMemoryError.ValueNotSupported, Assert.Throws<GuestMemoryException>(() => MemoryExport.Start(top, new MemoryExportOptions { Name = "a" })).Error);
        using (var packed = MemoryExport.Start(top, new MemoryExportOptions { Name = "a", IsPacked = true })) Assert.Equal(0x10000UL, packed.Size);
        foreach (var region in top.Regions) region.Dispose();
        Assert.Equal(GuestMemoryError.ValueNotSupported, Assert.Throws<GuestMemoryException>(() => MemoryExport.Start(_memory, new MemoryExportOptions { Name = new string('x', 4097) })).Error);
    }

    [Fact]
    public void ManyClientsReadAtOnce()
    {
        using var export = Start();
        Parallel.For(0, 16, index =>
        {
            using var client = new NbdClient(export.SocketPath!).Go();
            for (var i = 0; i < 100; i++)
            {
                var at = (index * 7919 + i * 104729) % (_low.Length - 5000);
                Assert.Equal(_low[at..(at + 5000)], client.Read(0x1000 + (ulong)at, 5000));
            }
        });
        Host.Until(() => export.ConnectionCount == 0);
        Assert.Equal(16, export.TotalConnectionCount);
        Assert.Null(export.Error);
    }

    private MemoryExport Start(bool isPacked = false) => MemoryExport.Start(_memory, new MemoryExportOptions { Name = "vm", SocketPath = _folder["nbd.sock"], IsPacked = isPacked });
}
