using System.Buffers.Binary;
using System.Net.Sockets;
using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>Domains: what the hypervisor says of them, their names, and the memory that they have.</summary>
public sealed class XenDomainTests
{
    [Theory]
    [InlineData(0b0000_0000u, XenDomainState.Idle, false)]
    [InlineData(0b0010_0000u, XenDomainState.Running, false)]
    [InlineData(0b0001_0010u, XenDomainState.Blocked, true)]
    [InlineData(0b0001_1010u, XenDomainState.Paused, true)]
    [InlineData(0x0003_0006u, XenDomainState.Shutdown, true)]
    [InlineData(0b0000_1101u, XenDomainState.Dying, false)]
    public void WhatTheHypervisorSays(uint flags, XenDomainState state, bool hvm)
    {
        var bytes = new byte[112];
        BinaryPrimitives.WriteUInt16LittleEndian(bytes, 5);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(4), flags);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(8), 0x1234);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(16), 0x2000);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(64), 3);
        for (var i = 0; i < 16; i++) bytes[76 + i] = (byte)(i + 1);
        var info = System.Runtime.InteropServices.MemoryMarshal.Read<XenDomainInfo>(bytes);
        var domain = new XenDomain(info, "web");
        Assert.Equal((5U, "web", state, hvm, 0x1234000UL, 0x2000000UL, 3), (domain.Id, domain.Name, domain.State, domain.IsHvm, domain.MemorySize, domain.MaxMemorySize, domain.VcpuCount));
        Assert.Equal("01020304-0506-0708-090a-0b0c0d0e0f10", domain.Uuid.ToString());
        Assert.Equal("web (domain 5)", domain.ToString());
        Assert.Equal("domain 5", new XenDomain(info, "").ToString());
        if (!hvm) Assert.Equal(GuestMemoryError.ValueNotSupported, Failure.Of(() => domain.GetRegions()));
        // Domain 0 may have what it likes.
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(16), ulong.MaxValue);
        Assert.Null(new XenDomain(System.Runtime.InteropServices.MemoryMarshal.Read<XenDomainInfo>(bytes), "").MaxMemorySize);
    }

    /// <summary>Where the domain has no frames its memory is zero and cannot be written, wherever a request ends.</summary>
    [Fact]
    public void WhatADomainDoesNotHaveIsAHole()
    {
        const ulong Count = 0x12000;
        static bool IsThere(ulong frame) => frame is < 0xa0 or (>= 0x100 and < 0x8001) or (>= 0x10000 and < 0x10002) or 0x11f00;
        using var xen = new FakeXen(Count * 4096) { FrameError = static frame => IsThere(frame) ? 0 : frame % 2 == 0 ? -Errno.EINVAL : -Errno.EPERM };
        var before = FakeXen.Mappings();
        var region = XenDomainMemory.Map(xen, xen.Device, 5, Count, "web");
        Assert.Equal((0UL, 0x11f01000UL, 5U, MmapXenFlags.Foreign, "web"), (region.GuestAddress, region.Size, region.DomainId, region.XenFlags, region.Name));
        Assert.Equal(before + 4, FakeXen.Mappings());
        var memory = GuestMemoryMmap.FromRegions([region]);
        memory.WriteObject(new GuestAddress(0x8000ff8), 7UL);
        Assert.Equal((7UL, 0UL), (memory.ReadObject<ulong>(new GuestAddress(0x8000ff8)), memory.ReadObject<ulong>(new GuestAddress(0x8001000))));
        // A read over a hole is whole.
        var bytes = new byte[0x3000];
        memory.ReadExact(new GuestAddress(0x8000000), bytes);
        Assert.Equal((7, 1), (bytes[0xff8], bytes.Count(static value => value != 0)));
        foreach (var hole in new ulong[] { 0xa0000, 0xa0ff8, 0xff000, 0x8001000, 0x11effff8 })
            Assert.Equal(GuestMemoryError.PageNotAccessible, Failure.Of(() => memory.WriteObject(new GuestAddress(hole), 1UL)));
        // What lies before a hole is written, and the error tells of the first address that is not.
        var failure = Assert.Throws<GuestMemoryException>(() => memory.WriteExact(new GuestAddress(0x8000ff0), Enumerable.Repeat((byte)9, 32).ToArray()));
        Assert.Equal((GuestMemoryError.PageNotAccessible, 0x8001000UL), (failure.Error, failure.Address));
        Assert.Contains("domain 5 has no memory there", failure.Message, StringComparison.Ordinal);
        Assert.Equal((0x0909090909090909UL, 0UL), (memory.ReadObject<ulong>(new GuestAddress(0x8000ff8)), memory.ReadObject<ulong>(new GuestAddress(0x8001000))));
        region.Dispose();
        Assert.Equal(before, FakeXen.Mappings());
    }

    [Fact]
    public void ADomainWithoutMemoryIsAnError()
    {
        using var none = new FakeXen(0x10000) { FrameError = static _ => -Errno.EINVAL };
        Assert.Equal(GuestMemoryError.NoMemoryRegion, Failure.Of(() => XenDomainMemory.Map(none, none.Device, 5, 16, "web")));
        using var missing = new FakeXen(0x10000) { FrameError = static _ => -Errno.ESRCH };
        Assert.Equal(GuestMemoryError.DomainNotFound, Failure.Of(() => XenDomainMemory.Map(missing, missing.Device, 5, 16, "web")));
    }

    /// <summary>A domain that changes meanwhile leaves nothing mapped.</summary>
    [Fact]
    public void AFrameThatGoesMeanwhileIsAnError()
    {
        using var xen = new FakeXen(0x10000);
        xen.FrameError = frame => frame == 3 || (frame == 9 && xen.Requests.Count > 1) ? -Errno.EINVAL : 0;
        var before = FakeXen.Mappings();
        Assert.Equal(GuestMemoryError.FrameNotMapped, Failure.Of(() => XenDomainMemory.Map(xen, xen.Device, 5, 16, "web")));
        Assert.Equal(before, FakeXen.Mappings());
    }

    /// <summary>xenstored's answers: a name, an error, what is no answer, and its end.</summary>
    [Theory]
    [InlineData(2U, 5U, "web", "web")]
    [InlineData(16U, 5U, "ENOENT\0", "")]
    [InlineData(2U, 6U, "other", "")]
    [InlineData(2U, 5U, "", "")]
    [InlineData(2U, 5U, null, "")]
    public async Task TheNameIsXenstores(uint type, uint request, string? answer, string name)
    {
        using var folder = new TestFolder();
        using var listener = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        listener.Bind(new UnixDomainSocketEndPoint(folder["s"]));
        listener.Listen();
        var served = Task.Run(() =>
        {
            using var peer = listener.Accept();
            var bytes = new byte[16 + 21];
            for (var done = 0; done < bytes.Length;) done += peer.Receive(bytes.AsSpan(done));
            if (answer is null) return bytes;
            var value = Encoding.UTF8.GetBytes(answer);
            peer.Send([.. BitConverter.GetBytes(type), .. BitConverter.GetBytes(request), .. new byte[4], .. BitConverter.GetBytes(value.Length), .. value]);
            return bytes;
        }, TestContext.Current.CancellationToken);
        using var store = XenStore.TryOpen(folder["s"]);
        Assert.Equal(name, store!.NameOf(5));
        Assert.Equal([2, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 21, 0, 0, 0, .. "/local/domain/5/name\0"u8], await served);
    }

    [Fact]
    public void WithoutXenstoreThereAreNoNames() => Assert.Null(XenStore.TryOpen("/nonexistent/socket"));

    [Fact]
    public void AHostWithoutXenHasNoDomains()
    {
        Assert.SkipWhen(XenDevice.IsDomain(), "this host is a Xen domain");
        var failure = Assert.Throws<SyscallException>(XenDomain.GetAll);
        Assert.Equal(GuestMemoryError.XenUnsupported, failure.Error);
        Assert.Contains("This host is not a Xen domain", failure.Message, StringComparison.Ordinal);
    }

    /// <summary>What is looked for is named, and what helps.</summary>
    [Fact]
    public void EachDeviceHasItsRow()
    {
        Assert.SkipWhen(XenDevice.IsDomain(), "this host is a Xen domain");
        var rows = HostSupport.Probe().Where(static row => row.Feature.StartsWith("Xen", StringComparison.Ordinal)).ToArray();
        Assert.Equal("Xen Xen:Privcmd Xen:Gntdev Xen:Control", string.Join(' ', rows.Select(static row => row.Feature)));
        Assert.All(rows, static row => Assert.True(!row.Supported && row.Detail.Length > 0 && row.Remedy is { Length: > 0 }, row.ToString()));
    }
}
