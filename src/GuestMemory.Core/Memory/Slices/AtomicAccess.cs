using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace GuestMemory.Core;

/// <summary>Loads and stores of integers of 1, 2, 4 and 8 bytes with an ordering (vm-memory's AtomicAccess). The address is aligned.</summary>
internal static unsafe class AtomicAccess
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static T Load<T>(byte* address, AtomicOrdering ordering)
        where T : unmanaged, IBinaryInteger<T>
    {
        Check<T>();
        if (ordering == AtomicOrdering.Release) throw new ArgumentOutOfRangeException(nameof(ordering), ordering, "A load is Relaxed, Acquire or SeqCst.");
        // A processor of the x86 family orders its loads after the barrier of every SeqCst store by itself.
        if (ordering == AtomicOrdering.SeqCst && !X86Base.IsSupported) Interlocked.MemoryBarrier();
        if (sizeof(T) == 1) return Unsafe.BitCast<byte, T>(Volatile.Read(ref *address));
        if (sizeof(T) == 2) return Unsafe.BitCast<ushort, T>(Volatile.Read(ref *(ushort*)address));
        if (sizeof(T) == 4) return Unsafe.BitCast<uint, T>(Volatile.Read(ref *(uint*)address));
        return Unsafe.BitCast<ulong, T>(Volatile.Read(ref *(ulong*)address));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store<T>(byte* address, T value, AtomicOrdering ordering)
        where T : unmanaged, IBinaryInteger<T>
    {
        Check<T>();
        if (ordering == AtomicOrdering.Acquire) throw new ArgumentOutOfRangeException(nameof(ordering), ordering, "A store is Relaxed, Release or SeqCst.");
        if (sizeof(T) == 1) Volatile.Write(ref *address, Unsafe.BitCast<T, byte>(value));
        else if (sizeof(T) == 2) Volatile.Write(ref *(ushort*)address, Unsafe.BitCast<T, ushort>(value));
        else if (sizeof(T) == 4) Volatile.Write(ref *(uint*)address, Unsafe.BitCast<T, uint>(value));
        else Volatile.Write(ref *(ulong*)address, Unsafe.BitCast<T, ulong>(value));
        if (ordering == AtomicOrdering.SeqCst) Interlocked.MemoryBarrier();
    }

    public static T Exchange<T>(byte* address, T value)
        where T : unmanaged, IBinaryInteger<T>
    {
        Check<T>();
        if (sizeof(T) == 1) return Unsafe.BitCast<byte, T>(Interlocked.Exchange(ref *address, Unsafe.BitCast<T, byte>(value)));
        if (sizeof(T) == 2) return Unsafe.BitCast<ushort, T>(Interlocked.Exchange(ref *(ushort*)address, Unsafe.BitCast<T, ushort>(value)));
        if (sizeof(T) == 4) return Unsafe.BitCast<uint, T>(Interlocked.Exchange(ref *(uint*)address, Unsafe.BitCast<T, uint>(value)));
        return Unsafe.BitCast<ulong, T>(Interlocked.Exchange(ref *(ulong*)address, Unsafe.BitCast<T, ulong>(value)));
    }

    public static T CompareExchange<T>(byte* address, T value, T comparand)
        where T : unmanaged, IBinaryInteger<T>
    {
        Check<T>();
        if (sizeof(T) == 1) return Unsafe.BitCast<byte, T>(Interlocked.CompareExchange(ref *address, Unsafe.BitCast<T, byte>(value), Unsafe.BitCast<T, byte>(comparand)));
        if (sizeof(T) == 2) return Unsafe.BitCast<ushort, T>(Interlocked.CompareExchange(ref *(ushort*)address, Unsafe.BitCast<T, ushort>(value), Unsafe.BitCast<T, ushort>(comparand)));
        if (sizeof(T) == 4) return Unsafe.BitCast<uint, T>(Interlocked.CompareExchange(ref *(uint*)address, Unsafe.BitCast<T, uint>(value), Unsafe.BitCast<T, uint>(comparand)));
        return Unsafe.BitCast<ulong, T>(Interlocked.CompareExchange(ref *(ulong*)address, Unsafe.BitCast<T, ulong>(value), Unsafe.BitCast<T, ulong>(comparand)));
    }

    /// <summary>Refuses what no processor accesses at once.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Check<T>()
        where T : unmanaged
    {
        if (sizeof(T) is not (1 or 2 or 4 or 8)) throw new NotSupportedException($"{typeof(T).Name} has no atomic access: 1, 2, 4 or 8 bytes.");
    }
}
