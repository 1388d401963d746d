using System.Buffers.Binary;
using System.Numerics;
using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <summary>Turns the bytes of an integer around.</summary>
internal static unsafe class ByteOrder
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Reverse<T>(T value)
        where T : unmanaged, IBinaryInteger<T>
    {
        if (sizeof(T) == 1) return value;
        if (sizeof(T) == 2) return Unsafe.BitCast<ushort, T>(BinaryPrimitives.ReverseEndianness(Unsafe.BitCast<T, ushort>(value)));
        if (sizeof(T) == 4) return Unsafe.BitCast<uint, T>(BinaryPrimitives.ReverseEndianness(Unsafe.BitCast<T, uint>(value)));
        if (sizeof(T) == 8) return Unsafe.BitCast<ulong, T>(BinaryPrimitives.ReverseEndianness(Unsafe.BitCast<T, ulong>(value)));
        if (sizeof(T) == 16) return Unsafe.BitCast<UInt128, T>(BinaryPrimitives.ReverseEndianness(Unsafe.BitCast<T, UInt128>(value)));
        throw new NotSupportedException($"{typeof(T).Name} is no integer of 1 to 16 bytes.");
    }
}
