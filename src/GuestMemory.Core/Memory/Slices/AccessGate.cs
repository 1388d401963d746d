using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <summary>
/// What every slice of one memory asks before and after it touches it: whether it may, whether it is still there, and who is to be
/// told of writes. One word answers all three, and it is 0 for memory that is simply there.
/// </summary>
/// <remarks>
/// Nothing is counted. Who takes the memory away first says so here, then has every CPU of the process pass a barrier, and only then
/// unmaps; the addresses stay reserved until no slice is left (<see cref="Interop.SafeMapping"/>). So an access either ends before,
/// or sees here that what it touched was no longer the memory, and fails; it can never touch anything else.
/// </remarks>
internal sealed unsafe class AccessGate(MmapRegion? region, object? keep = null)
{
    /// <summary>An access can fail or wait: the kernel must do it.</summary>
    public const int Guarded = 1;

    /// <summary>The memory was taken away.</summary>
    public const int Disposed = 2;

    /// <summary>Writes are marked in <see cref="Bitmap"/>.</summary>
    public const int Tracked = 4;

    private int _state;

    /// <summary>The flags that hold now.</summary>
    public int State
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => Volatile.Read(ref _state);
    }

    /// <summary>Whether the memory may be touched as it is.</summary>
    public bool IsDirect
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (State & (Guarded | Disposed)) == 0;
    }

    /// <summary>Where writes are marked; set once, before <see cref="Tracked"/>.</summary>
    public IBitmap? Bitmap { get; private set; }

    /// <summary>The region whose memory it is; null for memory that its owner keeps in place.</summary>
    public MmapRegion? Region { get; } = region;

    /// <summary>What must live as long as a slice does.</summary>
    public object? Keep { get; } = keep;

    /// <summary>Sets a flag. On return no access is under way that has not seen it, or whose effect is not visible.</summary>
    public void Set(int flag)
    {
        Interlocked.Or(ref _state, flag);
        Interlocked.MemoryBarrierProcessWide();
    }

    public void Clear(int flag) => Interlocked.And(ref _state, ~flag);

    /// <summary>Tracks writes from now on.</summary>
    public void Track(IBitmap bitmap)
    {
        Bitmap = bitmap;
        Set(Tracked);
    }

    /// <summary>Copies out of the memory; returns how many bytes came, fewer than asked only with an error number.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public nuint Read(byte* local, byte* memory, nuint length, out int error)
    {
        if (IsDirect)
        {
            VolatileCopy.Copy(local, memory, length);
            if (IsStillThere())
            {
                error = 0;
                return length;
            }
        }

        return Region!.ReadGuarded(memory, local, length, out error);
    }

    /// <summary>Copies into the memory and marks what was written, which begins at <paramref name="origin"/> of the bitmap.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public nuint Write(byte* memory, byte* local, nuint length, ulong origin, out int error)
    {
        if (IsDirect)
        {
            VolatileCopy.Copy(memory, local, length);
            error = 0;
        }
        else
        {
            length = Region!.WriteGuarded(memory, local, length, out error);
        }

        Written(origin, length);
        return length;
    }

    /// <summary>Around single accesses: makes sure that they neither wait nor fail. Direct memory needs nothing.</summary>
    public MmapRegion.TouchLease Touch(byte* memory, nuint length, bool write) => IsDirect ? default : Region!.Touch(memory, length, write);

    /// <summary>After reading: whether what was read was the memory.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsStillThere()
    {
        Volatile.ReadBarrier();
        return (State & Disposed) == 0;
    }

    /// <summary>After reading without an error number.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Leave()
    {
        if (!IsStillThere()) throw MmapRegion.Disposed();
    }

    /// <summary>After writing: marks it, or says that the memory was taken away.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Written(ulong origin, ulong length)
    {
        // The write stands before this in the program; who sets a flag makes it visible by a barrier before relying on it.
        if (State > Guarded) Mark(origin, length);
    }

    // At best a page that is dirty already: a few loads, so kept out of the way of writes that nobody tracks, but not far.
    private void Mark(ulong origin, ulong length)
    {
        if ((State & Disposed) != 0) throw MmapRegion.Disposed();
        BitmapSlice.Mark(Bitmap!, origin, length);
    }
}
