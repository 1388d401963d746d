using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>Where VMMs put the memory of their guests, and what a QEMU's command line says of it.</summary>
public sealed class VmmLayoutTests
{
    private const ulong Mebi = 1 << 20;

    [Theory]
    [InlineData("x86_64", "", 128, "0+128")]
    [InlineData("x86_64", "pc", 3583, "0+3583")]
    [InlineData("x86_64", "pc", 3584, "0+3072 4096+512")]
    [InlineData("x86_64", "pc-i440fx-7.2,accel=kvm", 8192, "0+3072 4096+5120")]
    [InlineData("x86_64", "pc-i440fx-1.7", 8192, null)]
    [InlineData("x86_64", "pc,max-ram-below-4g=2G", 4096, "0+2048 4096+2048")]
    [InlineData("x86_64", "pc,max-ram-below-4g=nonsense", 4096, null)]
    [InlineData("x86_64", "q35", 2815, "0+2815")]
    [InlineData("x86_64", "q35", 2816, "0+2048 4096+768")]
    [InlineData("x86_64", "accel=tcg,type=q35", 4096, "0+2048 4096+2048")]
    [InlineData("x86_64", "pc-q35-rhel9.2.0,usb=off", 4096, "0+2048 4096+2048")]
    [InlineData("x86_64", "q35,max-ram-below-4g=1G", 4096, "0+1024 4096+3072")]
    [InlineData("x86_64", "microvm", 4096, "0+3072 4096+1024")]
    [InlineData("x86_64", "isapc", 64, null)]
    [InlineData("x86_64", "pc", 1 << 21, null)]
    [InlineData("aarch64", "virt,gic-version=3", 8192, "1024+8192")]
    [InlineData("aarch64", "virt-7.2", 256, "1024+256")]
    [InlineData("aarch64", "raspi3b", 1024, null)]
    [InlineData("riscv64", "virt", 512, "2048+512")]
    [InlineData("s390x", "", 512, "0+512")]
    [InlineData("ppc64", "pseries-7.2", 512, "0+512")]
    [InlineData("mips", "malta", 512, null)]
    public void AMachineHasItsMemoryWhereQemuPutsIt(string architecture, string machine, ulong mebi, string? expected) =>
        Assert.Equal(expected, Text(VmmLayout.OfQemu(architecture, new QemuOptions(machine.Length == 0 ? ["qemu"] : ["qemu", "-machine", machine]).Machine, mebi * Mebi)));

    [Fact]
    public void OtherVmmsHaveTheirs()
    {
        Assert.Equal("0+3072 4096+1", Text(VmmLayout.OfFirecracker(3073 * Mebi, Architecture.X64)));
        Assert.Equal("2048+8192", Text(VmmLayout.OfFirecracker(8192 * Mebi, Architecture.Arm64)));
        Assert.Equal("0+3072 4096+1024", Text(VmmLayout.OfCloudHypervisor(4096 * Mebi, Architecture.X64)));
        Assert.Equal("1024+3008 4096+1088", Text(VmmLayout.OfCloudHypervisor(4096 * Mebi, Architecture.Arm64)));
        Assert.Equal("2048+512", Text(VmmLayout.OfCrosvm([512 * Mebi], Architecture.Arm64)));
    }

    [Theory]
    [InlineData("-m 3G", 3072UL)]
    [InlineData("-m 512", 512UL)]
    [InlineData("-m size=4194304k,slots=16,maxmem=8G", 4096UL)]
    [InlineData("--m 1.5G", 1536UL)]
    [InlineData("-smp 2", 128UL)]
    [InlineData("-m 1G -m 2G", 2048UL)]
    public void TheSizeOfTheMemoryIsRead(string arguments, ulong mebi) => Assert.Equal(mebi * Mebi, new QemuOptions(["qemu", .. arguments.Split(' ')]).Memory);

    [Theory]
    [InlineData("x")]
    [InlineData("")]
    [InlineData("-1")]
    [InlineData("99999999999999999999G")]
    public void ASizeThatIsNoneIsNotRead(string text) => Assert.Null(QemuOptions.SizeOf(text, 1));

    [Fact]
    public void ObjectsNodesAndMonitorsAreRead()
    {
        var options = new QemuOptions(["qemu", "-object", "{\"qom-type\":\"memory-backend-ram\",\"id\":\"pc.ram\",\"size\":4294967296}", "-object", "memory-backend-memfd,id=a,,b,size=1G", "-object", "rng-random,id=r",
            "-object", "{broken", "-object", "{\"qom-type\":\"memory-backend-ram\",\"id\":\"\\ud800\"}", "-numa", "node,nodeid=1,memdev=n1", "-numa", "node,nodeid=0,memdev=n0", "-numa", "cpu,node-id=0",
            "-qmp", "unix:/run/a.sock,server=on,wait=off", "-qmp", "tcp:localhost:1", "-chardev", "socket,id=m,path=/run/b.sock,server=on", "-mon", "chardev=m,mode=control",
            "-chardev", "socket,id=h,path=/run/c.sock,server=on", "-mon", "h", "-mon", "chardev=nothing,mode=control"]);
        Assert.Equal("a,b pc.ram", string.Join(' ', options.Backends.Keys.Order(StringComparer.Ordinal)));
        Assert.Equal(4096 * Mebi, QemuOptions.SizeOf(options.Backends["pc.ram"]));
        Assert.Equal(["n0", "n1"], options.NodeBackends);
        Assert.Equal("/run/a.sock /run/b.sock", string.Join(' ', options.MonitorPaths));
    }

    [Fact]
    public void AFlatViewIsReadAsTheMemoryUnderIt()
    {
        const string View = """
            FlatView #0
             AS "I/O", root: io
             Root memory region: io
              0000000000000000-000000000000ffff (prio 0, ram): pc.ram

            FlatView #1
             AS "memory", root: system
             AS "cpu-memory-0", root: system
             Root memory region: system
              0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
              00000000000a0000-00000000000bffff (prio 1, ram): vga.vram
              00000000000c0000-00000000000dffff (prio 0, rom): pc.ram @00000000000c0000 KVM
              0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000 KVM
              00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
              0000000100000000-000000017fffffff (prio 0, ram): pc.ram @0000000080000000 KVM
              0000000180000000-00000001bfffffff (prio 0, ram): dimm 0
              00000001c0000000-00000001bfffffff (prio 0, ram): pc.ram
              zz
            """;
        Assert.Equal([(0UL, 0x7fffffffUL), (0x1_0000_0000UL, 0x1_7fff_ffffUL), (0x1_8000_0000UL, 0x1_bfff_ffffUL)], QemuMonitor.ParseView(View, static name => name is "pc.ram" or "dimm 0"));
    }

    /// <summary>QEMU lets a second client wait without a word; others are no monitor at all.</summary>
    [Theory]
    [InlineData(null, "another client")]
    [InlineData("hello\n", "no QMP")]
    [InlineData("{\"a\":1}\n", "no QMP")]
    [InlineData("[1]\n", "no QMP")]
    [InlineData("{\"QMP\":{}}\n{\"error\":{\"desc\":\"no\"}}\n", "refuses")]
    [InlineData("{\"QMP\":{}}\n{\"error\":\"\\ud800\"}\n", "can be read")]
    [InlineData("", "closed")]
    public async Task AMonitorThatCannotBeUsedIsSoon(string? answer, string expected)
    {
        using var folder = new TestFolder();
        using var listener = new System.Net.Sockets.Socket(System.Net.Sockets.AddressFamily.Unix, System.Net.Sockets.SocketType.Stream, System.Net.Sockets.ProtocolType.Unspecified);
        listener.Bind(new System.Net.Sockets.UnixDomainSocketEndPoint(folder["q"]));
        listener.Listen(1);
        var serving = answer is null ? Task.CompletedTask : Task.Run(() =>
        {
            using var client = listener.Accept();
            client.Send(System.Text.Encoding.UTF8.GetBytes(answer));
            // Until the other end has read it.
            if (answer.Length > 0) while (client.Receive(new byte[64]) > 0) { }
        });
        var error = await Task.Run(() => Assert.Throws<GuestMemoryException>(() => QemuMonitor.Connect(folder["q"]))).WaitAsync(Host.Patience);
        Assert.Equal(GuestMemoryError.MonitorFailed, error.Error);
        Assert.Contains(expected, error.Message, StringComparison.Ordinal);
        await serving.WaitAsync(Host.Patience);
    }

    /// <summary>What a monitor says is the word of a process that may be hostile.</summary>
    [Theory]
    [InlineData("{\"return\":\"\\ud800\"}\n", "can be read")]
    [InlineData("{\"return\":\" AS \\\"memory\\\", root: system\\r\\n  0000000000000000-ffffffffffffffff (prio 0, ram): pc.ram\\r\\n\"}\n", "every address")]
    public async Task AMonitorThatLiesIsAnError(string answer, string expected)
    {
        using var folder = new TestFolder();
        using var listener = Listen(folder["q"]);
        var serving = Task.Run(() =>
        {
            using var client = listener.Accept();
            client.Send(System.Text.Encoding.UTF8.GetBytes("{\"QMP\":{}}\n{\"return\":{}}\n" + answer));
            while (client.Receive(new byte[64]) > 0) { }
        });
        var error = await Task.Run(() => Assert.Throws<GuestMemoryException>(() =>
        {
            using var monitor = QemuMonitor.Connect(folder["q"]);
            monitor.GetLayout(new QemuOptions(["qemu"]));
        })).WaitAsync(Host.Patience);
        Assert.Equal(GuestMemoryError.MonitorFailed, error.Error);
        Assert.Contains(expected, error.Message, StringComparison.Ordinal);
        await serving.WaitAsync(Host.Patience);
    }

    [Fact]
    public async Task AMonitorThatNeverAnswersIsLeft()
    {
        using var folder = new TestFolder();
        using var listener = Listen(folder["q"]);
        var serving = Task.Run(() =>
        {
            using var client = listener.Accept();
            client.Send("{\"QMP\":{}}\n"u8);
            try
            {
                while (true) client.Send("{\"event\":\"STOP\"}\n"u8);
            }
            catch (System.Net.Sockets.SocketException)
            {
                // The other end has left.
            }
        });
        using var limit = new CancellationTokenSource(TimeSpan.FromMilliseconds(200));
        await Task.Run(() => Assert.ThrowsAny<OperationCanceledException>(() => QemuMonitor.Connect(folder["q"], cancellation: limit.Token))).WaitAsync(Host.Patience);
        await serving.WaitAsync(Host.Patience);
    }

    private static System.Net.Sockets.Socket Listen(string path)
    {
        var listener = new System.Net.Sockets.Socket(System.Net.Sockets.AddressFamily.Unix, System.Net.Sockets.SocketType.Stream, System.Net.Sockets.ProtocolType.Unspecified);
        listener.Bind(new System.Net.Sockets.UnixDomainSocketEndPoint(path));
        listener.Listen(1);
        return listener;
    }

    private static string? Text(IReadOnlyList<GuestLayoutRange>? layout) => layout is null ? null : string.Join(" ", layout.Select(static range => $"{range.GuestAddress / Mebi}+{range.Size / Mebi}"));
}
