using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>The first half of 16.19, and what else never tears: values of 1, 2, 4 and 8 bytes at multiples of their size.</summary>
public sealed class TearingTests : IDisposable
{
    private readonly TestMemory _memory = new();

    public void Dispose() => _memory.Dispose();

    /// <summary>The object ends one region by its first two bytes and begins the next by the rest.</summary>
    [StructLayout(LayoutKind.Sequential, Pack = 1)]
    private struct AtTheEdge
    {
        public ushort Value;
        public ulong Rest;
    }

    /// <summary>Two halves that the compiler could load one by one.</summary>
    private record struct Halves(uint Low, uint High);

    [Theory]
    [BackingData]
    public void V16_19_TheValueAtTheEdgeNeverTears(string backing)
    {
        var memory = _memory.Space(backing, (0, 0x1000), (0x1000, 0x1000));
        var address = new GuestAddress(0x1000 - 2);
        var value = new AtTheEdge();
        memory.WriteObject(address, value);
        Stress.Repeat(Stress.Duration(3) / TestMemory.Kinds.Length,
            () =>
            {
                for (var i = 0; i < 1000; i++)
                {
                    value.Value = (ushort)~value.Value;
                    value.Rest = ~value.Rest;
                    memory.WriteObject(address, value);
                }
            },
            () =>
            {
                for (var i = 0; i < 1000; i++)
                {
                    var read = memory.ReadObject<AtTheEdge>(address).Value;
                    Assert.Equal(read & 0xff, read >> 8);
                }
            });
    }

    [Theory]
    [BackingData]
    public void AlignedValuesNeverTear(string backing)
    {
        var slice = _memory.Region(backing, 0, 0x1000).AsVolatileSlice();
        var bits = 0u;
        Stress.Repeat(Stress.Duration(1.5) / TestMemory.Kinds.Length,
            () =>
            {
                for (var i = 0; i < 1000; i++)
                {
                    bits = ~bits;
                    slice.WriteObject(new Halves(bits, bits), 0x18);
                    slice.GetRef<Halves>(0x20).Store(new Halves(bits, bits));
                    slice.Write(MemoryMarshal.AsBytes([new Halves(bits, bits)]), 0x28);
                    slice.Offset(0x30).CopyFrom<ulong>([(ulong)bits << 32 | bits]);
                    slice.WriteObject(bits, 0x40);
                }
            },
            () =>
            {
                Span<byte> bytes = stackalloc byte[8];
                Span<uint> words = stackalloc uint[1];
                Span<ulong> longs = stackalloc ulong[1];
                for (var i = 0; i < 1000; i++)
                {
                    Whole(slice.ReadObject<Halves>(0x18));
                    Whole(slice.GetRef<Halves>(0x20).Load());
                    slice.ReadExact(bytes, 0x28);
                    Whole(MemoryMarshal.Read<Halves>(bytes));
                    slice.Offset(0x30).CopyTo(longs);
                    Assert.Equal((uint)longs[0], (uint)(longs[0] >> 32));
                    slice.Subslice(0x40, 4).CopyTo(words);
                    Assert.Equal(words[0] & 0xffff, words[0] >> 16);
                }
            });

        static void Whole(Halves halves)
        {
            if (halves.Low != halves.High) Assert.Fail($"{halves}");
        }
    }
}
