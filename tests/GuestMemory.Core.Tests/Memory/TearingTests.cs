using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>
/// The first half of 16.19, and what else never tears: values of 1, 2, 4 and 8 bytes at multiples of their size, alone and in arrays.
/// Where a file could be cut short, the kernel copies them in steps of its own: there atomic loads and stores keep the promise.
/// </summary>
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
    [BackingData(NoFiles = true)]
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
    [InlineData("anonymous")]
    [InlineData("memfd")]
    [InlineData("served")]
    public void ElementsNeverTear(string backing)
    {
        // More than a page, so that a copy has parts; into and out of buffers that lie askew, which copies in larger steps split elements for.
        const int Length = 6000;
        var slice = _memory.Region(backing, 0, 0x4000).GetSlice(new MemoryRegionAddress(0x800), Length);
        var bits = false;
        Stress.Repeat(Stress.Duration(1),
            () =>
            {
                var bytes = new byte[Length + 1];
                bits = !bits;
                bytes.AsSpan().Fill(bits ? (byte)0xff : (byte)0);
                slice.CopyFrom<ulong>(MemoryMarshal.Cast<byte, ulong>(bytes.AsSpan(1)));
                slice.GetArrayRef<uint>(0, Length / 4).CopyFrom(MemoryMarshal.Cast<byte, uint>(bytes.AsSpan(1)));
            },
            () =>
            {
                var bytes = new byte[Length + 1];
                var longs = MemoryMarshal.Cast<byte, ulong>(bytes.AsSpan(1));
                Assert.Equal(Length / 8, slice.CopyTo(longs));
                foreach (var value in longs) Whole((uint)value, (uint)(value >> 32));
                var words = MemoryMarshal.Cast<byte, uint>(bytes.AsSpan(1));
                Assert.Equal(Length / 4, slice.CopyTo(words));
                foreach (var value in words) Whole(value & 0xffff, value >> 16);
                var shorts = MemoryMarshal.Cast<byte, ushort>(bytes.AsSpan(1));
                Assert.Equal(Length / 2, slice.GetArrayRef<ushort>(0, Length / 2).CopyTo(shorts));
                foreach (var value in shorts) Whole(value & 0xffu, (uint)value >> 8);
            });

        static void Whole(uint low, uint high)
        {
            if (low != high) Assert.Fail($"{low:x} and {high:x}");
        }
    }

    [Fact]
    public void AtomicAccessNeverTearsOnAFile()
    {
        var slice = _memory.Region("file", 0, 0x1000).AsVolatileSlice();
        var bits = 0u;
        Stress.Repeat(Stress.Duration(1),
            () =>
            {
                bits = ~bits;
                slice.Store(8, (ulong)bits << 32 | bits, AtomicOrdering.Relaxed);
                slice.Store(16, bits, AtomicOrdering.Relaxed);
                slice.Store(20, (ushort)bits, AtomicOrdering.Relaxed);
            },
            () =>
            {
                var (large, middle, small) = (slice.Load<ulong>(8, AtomicOrdering.Relaxed), slice.Load<uint>(16, AtomicOrdering.Relaxed), slice.Load<ushort>(20, AtomicOrdering.Relaxed));
                Assert.Equal(((uint)large, middle & 0xffff, small & 0xff), ((uint)(large >> 32), middle >> 16, small >> 8));
            });
    }

    [Theory]
    [BackingData(NoFiles = true)]
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
                    slice.WriteObject(0x18, new Halves(bits, bits));
                    slice.GetRef<Halves>(0x20).Store(new Halves(bits, bits));
                    slice.Write(0x28, MemoryMarshal.AsBytes([new Halves(bits, bits)]));
                    slice.Offset(0x30).CopyFrom<ulong>([(ulong)bits << 32 | bits]);
                    slice.WriteObject(0x40, bits);
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
                    slice.ReadExact(0x28, bytes);
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
