using System.Net.Sockets;

namespace GuestMemory.Core.Tests;

/// <summary>Regions without a host address among mapped ones: what works with all of them, and what needs a mapping and says so.</summary>
public sealed class OtherMemoryTests : IDisposable
{
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    [Theory]
    [InlineData("window")]
    [InlineData("pread")]
    [InlineData("foreign")]
    [InlineData("granted")]
    public void WhatNeedsAMappingRefusesOtherMemory(string backing)
    {
        var memory = _memory.Space([("anonymous", 0, 0x1000), (backing, 0x1000, 0x2000)]);
        using var listener = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        listener.Bind(new UnixDomainSocketEndPoint(_memory.Folder["s"]));
        listener.Listen();
        memory.Write(new GuestAddress(0), [42]);
        foreach (var use in (Action[])
        [
            () => new KvmVm(memory).Dispose(),
            () => UffdRegistration.Connect(_memory.Folder["s"], memory),
            () => UffdMappingList.FromMemory(memory),
            () => UffdTouch.Run(memory, new UffdTouchOptions()),
            () => memory.Discard(new GuestAddress(0), 0x2000),
            () => memory.Regions[1].GetMmapRegion(),
        ]) Assert.Equal(GuestMemoryError.HostAddressNotAvailable, Failure.Of(use));
        if (TestMemory.HasHostAddress(backing))
        {
            Assert.NotEqual(0UL, memory.GetHostAddress(new GuestAddress(0x1000)));
        }
        else
        {
            Assert.Equal(GuestMemoryError.HostAddressNotAvailable, Failure.Of(() => memory.GetHostAddress(new GuestAddress(0x1000))));
            Assert.Equal(GuestMemoryError.HostAddressNotAvailable, Failure.Of(() => memory.GetSlice(new GuestAddress(0x1000), 8).AlignedAsRef<ulong>(0)));
            Assert.True(memory.Regions[1].AsSlice().Span.IsEmpty && memory.Regions[1].AsMutSlice().Span.IsEmpty);
        }

        // Nothing has begun, not even with the region that could.
        Assert.False(memory.Regions[0].GetMmapRegion().IsGuarded);
        memory.Regions[0].GetMmapRegion().Release(force: false);
    }

    [Fact]
    public void ImagesAndMarksAreOfAllKinds()
    {
        var memory = _memory.Space([("anonymous", 0, 0x2000), ("window", 0x2000, 0x3000), ("pread", 0x8000, 0x2000), ("memfd", 0x10000, 0x1000)]);
        var content = new byte[0x5000];
        new Random(5).NextBytes(content);
        memory.WriteExact(new GuestAddress(0), content);
        memory.WriteExact(new GuestAddress(0x8000), content.AsSpan(0, 0x2000));
        RawImage.WriteFull(memory, _memory.Folder["full"], overwrite: false);
        Assert.Equal([.. content, .. content[..0x2000], .. new byte[0x1000]], File.ReadAllBytes(_memory.Folder["full"]));
        foreach (var region in memory.Regions) region.GetDirtyBitmap(clear: true);
        memory.WriteObject(new GuestAddress(0x4ffe), (ushort)7);
        memory.WriteObject(new GuestAddress(0x9000), 8UL);
        RawImage.WriteDirty(memory, _memory.Folder["full"], force: false);
        var image = File.ReadAllBytes(_memory.Folder["full"]);
        Assert.Equal((7, 8UL), (BitConverter.ToUInt16(image, 0x4ffe), BitConverter.ToUInt64(image, 0x6000)));
        Assert.All(memory.Regions, region => Assert.Empty(region.GetDirtyBitmap().GetRanges()));
    }

    /// <summary>A window is open during an access, and during no other time.</summary>
    [Fact]
    public void NoWindowStaysOpen()
    {
        using var windows = new WindowMemory(0x10000);
        var memory = GuestMemoryMmap.FromRegions([new GuestMemoryRegion(windows, new GuestAddress(0))]);
        foreach (var (_, access) in EveryAccess.To(memory)) access();
        Assert.Equal(0, windows.Open);
        using (windows.GetSlice(0x1ff0, 0x20).PtrGuard(MemoryProtection.Read)) Assert.Equal(1, windows.Open);
        Assert.Equal(0, windows.Open);
    }

    [Fact]
    public void ALongReadIsOneOfManyPieces()
    {
        // More than 1 GiB at once is asked for in pieces.
        using var memory = new LongMemory();
        var bytes = new byte[LongMemory.Length + 8];
        Assert.Equal(LongMemory.Length, memory.AsVolatileSlice().Read(0, bytes));
        Assert.Equal([(0UL, 1 << 30), (1UL << 30, 8)], memory.Reads);
        Assert.Equal((1UL, 2UL, 0UL), (BitConverter.ToUInt64(bytes), BitConverter.ToUInt64(bytes, 1 << 30), BitConverter.ToUInt64(bytes, LongMemory.Length)));
    }

    private sealed class LongMemory() : VolatileMemory(Length)
    {
        public const int Length = (1 << 30) + 8;

        public List<(ulong Offset, int Length)> Reads { get; } = [];

        protected override int ReadCore(ulong offset, Span<byte> buffer, out int error)
        {
            Reads.Add((offset, buffer.Length));
            System.Runtime.InteropServices.MemoryMarshal.Write(buffer, (ulong)Reads.Count);
            error = 0;
            return buffer.Length;
        }
    }
}
