using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// Copies between memory that others may write at the same time (vm-memory's copy_slice). 1, 2, 4 and 8 bytes are one access on
/// each side, which cannot tear where it is aligned; upstream splits what is not aligned on both sides, here only the processor
/// does. 3, 5, 6 and 7 bytes go in the largest steps, more than 8 bytes by memcpy, without a promise.
/// </summary>
internal static unsafe class VolatileCopy
{
    // Up to here, a page, the change of the thread's mode costs more than it is worth; beyond, a collection should not wait for the copy.
    private const nuint Few = 4096;

    // Two vectors hold it: quicker than the call of a function that has to find that out.
    private const nuint Short = 64;

    /// <summary>The longest copy that ends so soon that it need not be counted.</summary>
    public const nuint Brief = 64 << 10;

    /// <summary>What longer copies are cut into: large enough that the C library still copies around the caches.</summary>
    public const nuint Piece = 1 << 20;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Copy(byte* destination, byte* source, nuint length)
    {
        if (!TryCopyBrief(destination, source, length)) Mman.Copy(destination, source, length);
    }

    /// <summary>Copies where there is not more than <see cref="Brief"/>; else does nothing, and returns false.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryCopyBrief(byte* destination, byte* source, nuint length)
    {
        if (length <= Short) CopyShort(destination, source, length);
        else if (length <= Few) Mman.CopyFew(destination, source, length);
        else if (length <= Brief) Mman.Copy(destination, source, length);
        else return false;
        return true;
    }

    private static void CopyShort(byte* destination, byte* source, nuint length)
    {
        if (length > 32)
        {
            var end = Vector256.Load(source + length - 32);
            Vector256.Load(source).Store(destination);
            end.Store(destination + length - 32);
        }
        else if (length > 16)
        {
            var end = Vector128.Load(source + length - 16);
            Vector128.Load(source).Store(destination);
            end.Store(destination + length - 16);
        }
        else if (length > 8)
        {
            var end = Unsafe.ReadUnaligned<ulong>(source + length - 8);
            Unsafe.WriteUnaligned(destination, Unsafe.ReadUnaligned<ulong>(source));
            Unsafe.WriteUnaligned(destination + length - 8, end);
        }
        else
        {
            CopyStepped(destination, source, length);
        }
    }

    /// <summary>Reads a value of 1, 2, 4 or 8 bytes by one access, also one of several fields, which the compiler would read field by field.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Load<T>(byte* address)
        where T : unmanaged
    {
        if (typeof(T).IsPrimitive) return Unsafe.ReadUnaligned<T>(address);
        Unsafe.SkipInit(out T value);
        CopyStepped((byte*)&value, address, (nuint)sizeof(T));
        return value;
    }

    /// <summary>Writes a value of 1, 2, 4 or 8 bytes by one access.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store<T>(byte* address, T value)
        where T : unmanaged
    {
        if (typeof(T).IsPrimitive) Unsafe.WriteUnaligned(address, value);
        else CopyStepped(address, (byte*)&value, (nuint)sizeof(T));
    }

    /// <summary>Copies 0 to 8 bytes.</summary>
    public static void CopyStepped(byte* destination, byte* source, nuint length)
    {
        if (length == 8)
        {
            Unsafe.WriteUnaligned(destination, Unsafe.ReadUnaligned<ulong>(source));
            return;
        }

        if ((length & 4) != 0)
        {
            Unsafe.WriteUnaligned(destination, Unsafe.ReadUnaligned<uint>(source));
            destination += 4;
            source += 4;
        }

        if ((length & 2) != 0)
        {
            Unsafe.WriteUnaligned(destination, Unsafe.ReadUnaligned<ushort>(source));
            destination += 2;
            source += 2;
        }

        if ((length & 1) != 0) *destination = *source;
    }
}
