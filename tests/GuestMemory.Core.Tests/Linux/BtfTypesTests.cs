using System.Buffers.Binary;

namespace GuestMemory.Core.Tests;

/// <summary>The types that a kernel carries, and such as lie.</summary>
public sealed class BtfTypesTests
{
    [Fact]
    public void FieldsAreFoundAlsoInAnonymousParts()
    {
        var writer = new BtfWriter();
        var number = writer.Add("int", 1 << 24, 4, 0x0100_0020);
        var list = writer.Struct("list_head", 4, ("next", number, 0), ("prev", number, 64));
        var inner = writer.Struct("", 5, ("pgd", number, 0), ("other", number, 0));
        var volatileInner = writer.Add("", 9u << 24, inner);
        var outer = writer.Struct("", 4, ("", volatileInner, 64), ("last", number, 128));
        writer.Add("forward", 7u << 24, 0);
        writer.Struct("mm_struct", 4);   // a declaration
        writer.Struct("mm_struct", 4, ("first", number, 0), ("", outer, 128), ("list", list, 512));
        // With the flag the upper eight bits of an offset are the size of a bit field.
        writer.Add("bits", 1u << 31 | 4u << 24 | 1, 8, writer.Name("field"), number, 3u << 24 | 32);
        var types = BtfTypes.Parse(writer.Write());
        Assert.Equal([0, 24, 32, 64, null], types.Offsets("mm_struct", "first", "pgd", "last", "list", "next"));
        Assert.Equal([4], types.Offsets("bits", "field"));
        Assert.Equal(GuestMemoryError.InvalidKernelData, Assert.Throws<GuestMemoryException>(() => types.Offsets("forward", "x")).Error);
        Assert.Equal(9, types.Count);
    }

    [Fact]
    public void EveryKindHasItsLength()
    {
        var writer = new BtfWriter();
        uint[] extra = [0, 1, 0, 3, 3, 3, 2, 0, 0, 0, 0, 0, 0, 2, 1, 3, 0, 1, 0, 3];
        for (uint kind = 1; kind < 20; kind++) writer.Add("", kind << 24 | (kind is 4 or 5 or 6 or 13 or 15 or 19 ? 1u : 0), 0, new uint[extra[kind]]);
        writer.Struct("last", 4, ("field", 1, 8));
        Assert.Equal([1], BtfTypes.Parse(writer.Write()).Offsets("last", "field"));
    }

    [Fact]
    public void WhatNestsWithoutEndEnds()
    {
        // A structure of 500 anonymous parts that are itself.
        var writer = new BtfWriter();
        writer.Struct("task_struct", 4, [.. Enumerable.Repeat(("", 1u, 0u), 500)]);
        // Names of types that refer to each other.
        writer.Add("a", 8u << 24, 3);
        writer.Add("b", 8u << 24, 2);
        writer.Struct("ring", 4, ("", 2, 0), ("", 99, 0));
        var types = BtfTypes.Parse(writer.Write());
        var error = Assert.Throws<GuestMemoryException>(() => types.Offsets("task_struct", "pid"));
        Assert.Equal(GuestMemoryError.InvalidKernelData, error.Error);
        Assert.Equal([null], types.Offsets("ring", "pid"));

        // Not deep, but 500 parts of 500 parts of ...
        writer = new BtfWriter();
        for (uint i = 1; i <= 12; i++) writer.Struct(i == 1 ? "task_struct" : "", 4, [.. Enumerable.Repeat(("", i + 1, 0u), 500)]);
        writer.Struct("", 4, ("pid", 0, 0));
        types = BtfTypes.Parse(writer.Write());
        Assert.Equal(GuestMemoryError.InvalidKernelData, Assert.Throws<GuestMemoryException>(() => types.Offsets("task_struct", "pid", "none")).Error);
    }

    [Fact]
    public void LiesAreErrors()
    {
        var writer = new BtfWriter();
        writer.Struct("task_struct", 4, ("pid", 0, 0), ("tgid", 0, 32));
        var good = writer.Write();
        Assert.Equal(good.Length, BtfTypes.SizeOf(good));
        // Every word of it another, and every length.
        foreach (var value in (uint[])[0, 1, 7, 0xffff, 0x7fff_ffff, 0x8000_0000, uint.MaxValue])
        {
            for (var at = 0; at + 4 <= good.Length; at++)
            {
                var bad = (byte[])good.Clone();
                BinaryPrimitives.WriteUInt32LittleEndian(bad.AsSpan(at), value);
                Try(bad);
            }
        }

        for (var length = 0; length < good.Length; length++) Assert.Throws<GuestMemoryException>(() => BtfTypes.Parse(good[..length]));

        static void Try(byte[] bytes)
        {
            try
            {
                BtfTypes.Parse(bytes).Offsets("task_struct", "pid", "tgid");
            }
            catch (GuestMemoryException exception)
            {
                Assert.Equal(GuestMemoryError.InvalidKernelData, exception.Error);
            }
        }
    }
}
