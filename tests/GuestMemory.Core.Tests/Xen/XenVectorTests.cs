using System.Buffers.Binary;

namespace GuestMemory.Core.Tests;

/// <summary>The vectors of mmap-region-and-xen.md, section 3.6 to 3.13: flags, what is refused, and the bytes of every request.</summary>
public sealed class XenVectorTests
{
    private const MmapXenFlags OnDemand = MmapXenFlags.Grant | MmapXenFlags.NoAdvanceMap;

    /// <summary>The table of 2.1: value, valid, unix, foreign, grant, in advance.</summary>
    [Theory]
    [InlineData(0U, true, true, false, false, true)]
    [InlineData(1U, true, false, true, false, true)]
    [InlineData(2U, true, false, false, true, true)]
    [InlineData(3U, false, false, true, true, true)]
    [InlineData(4U, false, false, false, false, true)]
    [InlineData(8U, false, false, false, false, false)]
    [InlineData(9U, false, false, true, false, false)]
    [InlineData(10U, true, false, false, true, false)]
    [InlineData(11U, false, false, true, true, false)]
    [InlineData(16U, false, false, false, false, true)]
    [InlineData(0x80000002U, false, false, false, true, true)]
    public void V3_6_Flags(uint value, bool valid, bool unix, bool foreign, bool grant, bool inAdvance)
    {
        var flags = (MmapXenFlags)value;
        Assert.Equal((valid, unix, foreign, grant, inAdvance), (flags.IsValid(), flags.IsUnix(), flags.IsForeign(), flags.IsGrant(), flags.MapsInAdvance()));
        if (valid) return;
        using var xen = new FakeXen(0x1000);
        var failure = Assert.Throws<GuestMemoryException>(() => XenMmapRegion.FromRange(Range(xen, flags), xen));
        Assert.Equal(GuestMemoryError.MmapFlags, failure.Error);
        Assert.Contains($"0x{value:x}.", failure.Message, StringComparison.Ordinal);
        Assert.Empty(xen.Requests);
    }

    [Theory]
    [InlineData(1U, true)]
    [InlineData(2U, true)]
    [InlineData(10U, false)]
    public void V3_7_WhatIsMapped(uint flags, bool inAdvance)
    {
        using var xen = new FakeXen(0x2000);
        using var region = (XenMmapRegion)XenMmapRegion.FromRange(Range(xen, (MmapXenFlags)flags), xen);
        Assert.Equal((flags, 1U, 0x1000UL, 0x1000UL), ((uint)region.XenMmapFlags, region.XenMmapData, region.Size, region.Address.Value));
        Assert.Equal((inAdvance, inAdvance), (region.HasHostAddress, region.XenMmapFlags.MapsInAdvance()));
        var guest = new GuestMemoryRegion(region, region.Address);
        if (inAdvance) Assert.NotEqual(0UL, guest.GetHostAddress(default));
        else Assert.Equal(GuestMemoryError.HostAddressNotAvailable, Failure.Of(() => guest.GetHostAddress(default)));
        Assert.Equal((0UL, 3, 0x4001, null), (region.File.Start, (int)region.Protection, (int)region.Flags, region.IsHugetlbfs));
        region.SetHugetlbfs(true);
        Assert.True(region.IsHugetlbfs);
        region.SetHugetlbfs(false);
        Assert.False(region.IsHugetlbfs);
    }

    /// <summary>What is not set is what upstream's from_range makes of it, so that 3.8 and 3.9 have no mapping without protection or flags.</summary>
    [Theory]
    [InlineData(1U)]
    [InlineData(2U)]
    [InlineData(10U)]
    public void V3_8_V3_9_WhatIsRefused(uint flags)
    {
        using var xen = new FakeXen(0x2000);
        var range = Range(xen, (MmapXenFlags)flags);
        Assert.Equal(GuestMemoryError.InvalidOffsetLength, Of(range with { FileOffset = 1 }));
        Assert.Equal(GuestMemoryError.InvalidFileOffset, Of(range with { File = null }));
        Assert.Equal(GuestMemoryError.MapFixed, Of(range with { Flags = MapFlags.Shared | MapFlags.Fixed }));
        // What upstream does not look at: it would map another place than the one that was asked for.
        Assert.Equal(GuestMemoryError.NotPageAligned, Of(range with { Address = 0x1001 }));
        Assert.Equal(GuestMemoryError.ValueNotSupported, Of(range with { XenData = 0x10000 }));
        Assert.Equal(GuestMemoryError.OutOfMemory, Of(range with { Size = (512UL << 30) + 1 }));
        Assert.Equal(GuestMemoryError.OutOfMemory, Of(range with { Size = ulong.MaxValue }));
        Assert.Equal(GuestMemoryError.ValueNotSupported, Of(range with { GrantReferences = [1, 2] }));
        Assert.Equal(flags == 1 ? GuestMemoryError.InvalidGuestRegion : GuestMemoryError.ValueNotSupported, Of(range with { Address = ulong.MaxValue - 0xfff, Size = 0x2000 }));
        Assert.Empty(xen.Requests);
        if (flags == 10)
        {
            using var empty = XenMmapRegion.FromRange(range with { Size = 0 }, xen);
            Assert.Equal(0UL, empty.Size);
        }
        else
        {
            var failure = Assert.Throws<SyscallException>(() => XenMmapRegion.FromRange(range with { Size = 0 }, xen));
            Assert.Equal(("mmap", Errno.EINVAL, GuestMemoryError.ZeroSize), (failure.Function, failure.ErrorCode, failure.Error));
        }

        Assert.Empty(xen.Requests);

        GuestMemoryError Of(MmapRange wrong) => Failure.Of(() => XenMmapRegion.FromRange(wrong, xen));
    }

    /// <summary>3.10 to 3.12 in advance: address, size, and the references that are asked for; the count is that of whole pages.</summary>
    [Theory]
    [InlineData(0x1000000UL, 0x100000UL, 0U, 0x1000U, 0x100)]
    [InlineData(0x1000UL, 1UL, 1U, 1U, 1)]
    [InlineData(0x1000UL, 0x400UL, 1U, 1U, 1)]
    [InlineData(0x1000UL, 4096UL, 1U, 1U, 1)]
    [InlineData(0x1000UL, 4097UL, 1U, 1U, 2)]
    [InlineData(0x8000000000005000UL, 0x2000UL, 7U, 5U, 2)]
    public void V3_10_ReferencesOfAGrant(ulong address, ulong size, uint domain, uint first, int count)
    {
        using var xen = new FakeXen((first + (ulong)count) * 4096);
        using (XenMmapRegion.FromRange(new MmapRange(size, address, MmapXenFlags.Grant, domain) { File = xen.Device }, xen))
        {
            var (request, bytes) = Assert.Single(xen.Requests);
            Assert.Equal((0x00184700U, 16 + (8 * count)), (request, bytes.Length));
            Assert.Equal(MapRequest(domain, Enumerable.Range((int)first, count)), bytes);
        }

        Assert.Equal((2, 0, 0x00104701U), (xen.Requests.Count, xen.Granted, xen.Requests[1].Request));
        Assert.Equal([.. Bytes(first * 4096UL), .. Bytes(count), 0, 0, 0, 0], xen.Requests[1].Bytes);
    }

    /// <summary>3.12: an access on demand maps the pages that it touches, for what it does, and gives them back.</summary>
    [Theory]
    [InlineData(0x1000UL, 0x1ffeUL, 4, 2, 2)]
    [InlineData(0x8000000000005000UL, 0UL, 1, 5, 1)]
    [InlineData(0x1000UL, 0xfffUL, 1, 1, 1)]
    [InlineData(0x1000UL, 0x1000UL, 0x2000, 2, 2)]
    public void V3_12_ReferencesOfAnAccess(ulong address, ulong offset, int length, int first, int count)
    {
        using var xen = new FakeXen(0x10000);
        using var region = XenMmapRegion.FromRange(new MmapRange(0x8000, address, OnDemand, 3) { File = xen.Device }, xen);
        Assert.Empty(xen.Requests);
        region.GetSlice(offset, (ulong)length).ReadExact(0, new byte[length]);
        Assert.Equal([0x00184700U, 0x00104701U], xen.Requests.Select(static request => request.Request));
        Assert.Equal(MapRequest(3, Enumerable.Range(first, count)), xen.Requests[0].Bytes);
        Assert.Equal([.. Bytes((ulong)first * 4096), .. Bytes(count), 0, 0, 0, 0], xen.Requests[1].Bytes);
    }

    /// <summary>References that follow no order are asked for as they were given.</summary>
    [Fact]
    public void ReferencesMayBeListed()
    {
        using var xen = new FakeXen(0x10000);
        using var region = XenMmapRegion.FromRange(new MmapRange(0x3000, 0x40000000, OnDemand, 3) { File = xen.Device, GrantReferences = [9, 4, 7] }, xen);
        region.GetSlice(0x1800, 0x1000).ReadExact(0, new byte[0x1000]);
        Assert.Equal(MapRequest(3, [4, 7]), xen.Requests[0].Bytes);
    }

    /// <summary>3.12: the frames of a foreign mapping, and its request.</summary>
    [Theory]
    [InlineData(0x40000000UL, 0x3000UL, 5U, 0x40000UL, 3)]
    [InlineData(0x1000UL, 0x1001UL, 0xfffeU, 1UL, 2)]
    public void V3_12_FramesOfAForeignMapping(ulong address, ulong size, uint domain, ulong first, int count)
    {
        using var xen = new FakeXen(0x10000);
        using var region = XenMmapRegion.FromRange(new MmapRange(size, address, MmapXenFlags.Foreign, domain) { File = xen.Device }, xen);
        var (request, bytes) = Assert.Single(xen.Requests);
        Assert.Equal((0x00205004U, 32), (request, bytes.Length));
        var mapped = new GuestMemoryRegion(region, address).GetHostAddress(default);
        Assert.Equal([.. Bytes(count), .. Bytes((ushort)domain), 0, 0, .. Bytes(mapped)], bytes[..16]);
        Assert.NotEqual(0UL, BinaryPrimitives.ReadUInt64LittleEndian(bytes.AsSpan(24)));
        Assert.Equal(Enumerable.Range(0, count).Select(i => first + (ulong)i), Assert.Single(xen.Frames));
    }

    [Fact]
    public void V3_13_Numbers() =>
        Assert.Equal((0x00205004U, 0x00184700U, 0x00104701U), (XenApi.IOCTL_PRIVCMD_MMAPBATCH_V2, XenApi.IOCTL_GNTDEV_MAP_GRANT_REF, XenApi.IOCTL_GNTDEV_UNMAP_GRANT_REF));

    /// <summary>2.3 and 2.7: what is not Xen's is an ordinary mapping.</summary>
    [Fact]
    public void ARangeOfUnixIsAnOrdinaryMapping()
    {
        using var folder = new TestFolder();
        File.WriteAllBytes(folder["f"], [.. Enumerable.Range(0, 0x2000).Select(static i => (byte)(i / 0x1000))]);
        using var file = File.OpenHandle(folder["f"], FileMode.Open, FileAccess.ReadWrite);
        using var xen = new FakeXen(0x1000);
        using var mapped = Assert.IsType<MmapRegion>(XenMmapRegion.FromRange(MmapRange.NewUnix(0x1000, 0x5000, file, 0x1000), xen));
        Assert.Equal((0x4001, 3, 0x1000UL, 1), ((int)mapped.Flags, (int)mapped.Protection, mapped.File!.Start, mapped.AsVolatileSlice().ReadObject<byte>(0)));
        using var anonymous = Assert.IsType<MmapRegion>(XenMmapRegion.FromRange(MmapRange.NewUnix(0x1000, 0x5000) with { DirtyTracking = true, IsHugetlbfs = false }, xen));
        Assert.Equal((0x22, true, false), ((int)anonymous.Flags, anonymous.File is null, anonymous.IsHugetlbfs));
        anonymous.AsVolatileSlice().WriteObject(8, 1UL);
        Assert.True(anonymous.Bitmap!.IsDirtyAt(8));
        using var unset = Assert.IsType<MmapRegion>(XenMmapRegion.FromRange(new MmapRange(0x1000, 0x5000), xen));
        Assert.Equal(0x4021, (int)unset.Flags);
        Assert.Equal(GuestMemoryError.MapFixed, Failure.Of(() => XenMmapRegion.FromRange(new MmapRange(0x1000, 0) { Flags = MapFlags.Fixed }, xen)));
        Assert.Empty(xen.Requests);
    }

    private static MmapRange Range(FakeXen xen, MmapXenFlags flags) => new(0x1000, 0x1000, flags, 1) { File = xen.Device };

    /// <summary>struct ioctl_gntdev_map_grant_ref: count, padding, index, and the references.</summary>
    private static byte[] MapRequest(uint domain, IEnumerable<int> references)
    {
        var all = references.ToArray();
        return [.. Bytes(all.Length), 0, 0, 0, 0, .. Bytes(0UL), .. all.SelectMany(reference => (byte[])[.. Bytes((int)domain), .. Bytes(reference)])];
    }

    private static byte[] Bytes(ulong value) => BitConverter.GetBytes(value);

    private static byte[] Bytes(int value) => BitConverter.GetBytes(value);

    private static byte[] Bytes(ushort value) => BitConverter.GetBytes(value);
}
