using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

public sealed unsafe class ByteValuedTests
{
    [Fact]
    public void V16_14_ReadsAStructure()
    {
        using var stream = new MemoryStream([0, 0, 0, 0, 1, 1, 1, 1]);
        var value = ByteValued.ReadExactFrom<Pair>(stream);
        Assert.Equal((0U, 0x01010101U), (value.A, value.B));
    }

    [Fact]
    public void V16_14_SevenBytesAreTooFewToRead()
    {
        using var stream = new MemoryStream(new byte[7]);
        Assert.Equal(GuestMemoryError.UnexpectedEof, Assert.Throws<GuestMemoryException>(() => ByteValued.ReadExactFrom<Pair>(stream)).Error);
    }

    [Fact]
    public void V16_14_SevenBytesAreTooFewToWrite()
    {
        var buffer = new byte[7];
        using var stream = new MemoryStream(buffer);
        var error = Assert.Throws<GuestMemoryException>(() => ByteValued.WriteAllTo(new Pair { A = 0x04030201, B = 0x08070605 }, stream));
        Assert.Equal(GuestMemoryError.WriteZero, error.Error);
        Assert.Equal([1, 2, 3, 4, 5, 6, 7], buffer);
    }

    [Fact]
    public void V16_14_ZeroedIsAllZeros()
    {
        var value = ByteValued.Zeroed<Pair>();
        Assert.Equal(new byte[8], ByteValued.AsSlice(in value).ToArray());
    }

    [Fact]
    public void V16_14_AMockOfTenBytesTakesAValueAtItsBeginningOnly()
    {
        var slice = VolatileSlice.FromArray(new byte[10]);
        slice.WriteObject(0, 1UL);
        Assert.Equal(GuestMemoryError.OutOfBounds, Assert.Throws<VolatileMemoryException>(() => slice.WriteObject(10, 1UL)).Error);
    }

    [Fact]
    public void AValueIsItsBytesInPlace()
    {
        var value = new Pair { A = 1, B = 2 };
        Assert.Equal([1, 0, 0, 0, 2, 0, 0, 0], ByteValued.AsSlice(in value).ToArray());
        ByteValued.AsMutSlice(ref value)[4] = 7;
        Assert.Equal(7U, value.B);
        ByteValued.AsBytes(&value).WriteObject(0, 9U);
        Assert.Equal(9U, value.A);
    }

    [Theory]
    [InlineData(0, 8, true)]
    [InlineData(4, 8, true)]
    [InlineData(1, 8, false)]
    [InlineData(0, 7, false)]
    [InlineData(0, 9, false)]
    public void BytesAreAValueWhereSizeAndAlignmentFit(int from, int length, bool expected)
    {
        var memory = stackalloc ulong[3];
        var bytes = new Span<byte>((byte*)memory + from, length);
        Assert.Equal(expected, !Unsafe.IsNullRef(ref Unsafe.AsRef(in ByteValued.FromSlice<Pair>(bytes))));
        Assert.Equal(expected, !Unsafe.IsNullRef(ref ByteValued.FromMutSlice<Pair>(bytes)));
        if (!expected) return;
        ByteValued.FromMutSlice<Pair>(bytes).B = 0x0403;
        Assert.Equal([3, 4], bytes[4..6].ToArray());
    }

    [Fact]
    public void EndianTypesStoreTheirOrder()
    {
        Le<ushort> le16 = 0x0102;
        Le<uint> le32 = 0x01020304;
        Le<ulong> le64 = 0x0102030405060708;
        Be<ushort> be16 = 0x0102;
        Be<uint> be32 = 0x01020304;
        Be<ulong> be64 = 0x0102030405060708;
        Le<nuint> leSize = 1;
        Be<nuint> beSize = 1;
        Assert.Equal([2, 1], ByteValued.AsSlice(in le16).ToArray());
        Assert.Equal([4, 3, 2, 1], ByteValued.AsSlice(in le32).ToArray());
        Assert.Equal([8, 7, 6, 5, 4, 3, 2, 1], ByteValued.AsSlice(in le64).ToArray());
        Assert.Equal([1, 2], ByteValued.AsSlice(in be16).ToArray());
        Assert.Equal([1, 2, 3, 4], ByteValued.AsSlice(in be32).ToArray());
        Assert.Equal([1, 2, 3, 4, 5, 6, 7, 8], ByteValued.AsSlice(in be64).ToArray());
        Assert.Equal([1, 0, 0, 0, 0, 0, 0, 0], ByteValued.AsSlice(in leSize).ToArray());
        Assert.Equal([0, 0, 0, 0, 0, 0, 0, 1], ByteValued.AsSlice(in beSize).ToArray());
        Assert.Equal(0x0102, (ushort)be16);
        Assert.True(le32.Equals(0x01020304U) && be64.Equals(0x0102030405060708UL) && le16 == 0x0102 && be32 != 1);
        Assert.Equal("16909060", be32.ToString());
        Assert.Equal(sizeof(uint), sizeof(Be<uint>));
    }

    [Fact]
    public void AStructureOfEndianTypesGoesThroughGuestMemory()
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        memory.WriteObject(new GuestAddress(0x10), new Header { Magic = 0x464c457f, Version = 2 });
        var back = memory.ReadObject<Header>(new GuestAddress(0x10));
        Assert.Equal((0x464c457fU, (ushort)2), ((uint)back.Magic, (ushort)back.Version));
        Assert.Equal(0x0002, memory.ReadObject<ushort>(new GuestAddress(0x14)) >> 8);
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Pair
    {
        public uint A;
        public uint B;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Header
    {
        public Le<uint> Magic;
        public Be<ushort> Version;
    }
}
