using System.Runtime.CompilerServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <content>
/// How an access goes. What every slice asks before and after it touches the memory is one word: whether it may, whether the memory
/// is still there, and whether writes are marked. The word is 0 for memory that is simply there, and no virtual member is called then.
/// </content>
/// <remarks>
/// Short accesses are not counted. Release sets Disposed, has every CPU of the process pass a barrier, and only then unmaps; the addresses stay
/// reserved until no slice is left (<see cref="SafeMapping"/>). So an access either ends before, or sees here that what it touched
/// was no longer the memory, and fails; it can never touch anything else. A hand-over to a page-fault handler sets Guarded, and cannot
/// rely on that: what an access touches from then on may be missing. It waits until all are over (<see cref="MmapRegion.HandOver"/>).
/// </remarks>
public abstract unsafe partial class VolatileMemory
{
    /// <summary>An access can fail or wait: what the kind overrides must do it.</summary>
    internal const int Guarded = 1;

    /// <summary>The memory was taken away.</summary>
    internal const int Disposed = 2;

    /// <summary>Writes are marked in the bitmap.</summary>
    internal const int Tracked = 4;

    // One call of a kind's copy takes a span.
    private const int Longest = 1 << 30;

    private int _state;

    /// <summary>The flags that hold now.</summary>
    internal int State
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => Volatile.Read(ref _state);
    }

    /// <summary>Whether the memory may be touched as it is.</summary>
    internal bool IsDirect
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (State & (Guarded | Disposed)) == 0;
    }

    /// <summary>Where writes are marked from an offset on.</summary>
    internal BitmapSlice BitmapAt(ulong offset) => new(_bitmap, offset);

    /// <summary>Says that the memory is taken away: from the return on every access that has not ended fails with RegionDisposed.</summary>
    /// <remarks>Accesses that are inside <see cref="ReadCore"/>, <see cref="WriteCore"/>, or between <see cref="Pin"/> and <see cref="Unpin"/> are the kind's to wait for.</remarks>
    protected void SetDisposed() => Set(Disposed);

    /// <summary>
    /// Sets a flag. On return every access that begins sees it, and every access that has not seen it has either ended, with its effect
    /// visible, or is still under way and sees the flag when it looks again at its end.
    /// </summary>
    private protected void Set(int flag)
    {
        Interlocked.Or(ref _state, flag);
        Interlocked.MemoryBarrierProcessWide();
    }

    /// <summary>Sets a flag that <see cref="Set"/> makes known later; returns whether it was set before.</summary>
    private protected bool SetEarly(int flag) => (Interlocked.Or(ref _state, flag) & flag) != 0;

    private protected void Clear(int flag) => Interlocked.And(ref _state, ~flag);

    /// <summary>
    /// Reads bytes from an offset. Returns how many came: fewer than asked only where the memory ends or a page cannot be had;
    /// then <paramref name="error"/> is not 0. An offset past the end gives 0 bytes.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal int TryRead(ulong offset, Span<byte> destination, out int error)
    {
        error = 0;
        if (offset >= Size) return 0;
        fixed (byte* local = destination)
            return (int)Read(local, _start + offset, (nuint)Math.Min((ulong)destination.Length, Size - offset), out error);
    }

    /// <summary>Writes bytes at an offset, then marks them dirty; the counterpart of <see cref="TryRead"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal int TryWrite(ulong offset, ReadOnlySpan<byte> source, out int error)
    {
        error = 0;
        if (offset >= Size) return 0;
        fixed (byte* local = source)
            return (int)Write(_start + offset, local, (nuint)Math.Min((ulong)source.Length, Size - offset), offset, out error);
    }

    /// <summary>Copies out of the memory; returns how many bytes came, fewer than asked only with an error number.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal nuint Read(byte* local, byte* memory, nuint length, out int error)
    {
        if (IsDirect && VolatileCopy.TryCopyBrief(local, memory, length) && IsStillThere())
        {
            error = 0;
            return length;
        }

        // By way of a local of its own, so that the caller's stays in a register.
        length = ReadOtherwise(memory, local, length, out var found);
        error = found;
        return length;
    }

    /// <summary>Copies into the memory and marks what was written, which begins at <paramref name="origin"/> of the bitmap.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal nuint Write(byte* memory, byte* local, nuint length, ulong origin, out int error)
    {
        if (IsDirect && VolatileCopy.TryCopyBrief(memory, local, length))
        {
            error = 0;
        }
        else
        {
            length = WriteOtherwise(memory, local, length, out var found);
            error = found;
        }

        Written(origin, length);
        return length;
    }

    /// <summary>After reading: whether what was read was the memory.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool IsStillThere()
    {
        Volatile.ReadBarrier();
        return (State & Disposed) == 0;
    }

    /// <summary>After reading without an error number.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal void Leave()
    {
        if (!IsStillThere()) throw RegionDisposed();
    }

    /// <summary>After writing: whether it is to be marked, or the memory was taken away. Then <see cref="Mark"/> is to be called.</summary>
    internal bool MustMark
    {
        // The write stands before this in the program; who sets a flag makes it visible by a barrier before relying on it.
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => State > Guarded;
    }

    /// <summary>After writing: marks it, or says that the memory was taken away.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal void Written(ulong origin, ulong length)
    {
        if (MustMark) Mark(origin, length);
    }

    /// <summary>Around single accesses: makes sure that they neither wait nor fail. Direct memory needs nothing.</summary>
    internal AccessPin Touch(byte* memory, nuint length, MemoryProtection access) =>
        IsDirect ? new AccessPin(memory) : AccessPin.Begin(this, OffsetOf(memory), length, access, brief: true);

    /// <summary>
    /// Around elements that are to be accessed one by one. Without an address where this kind cannot make sure that they are there: they
    /// are copied together then, which also says which of them is not there.
    /// </summary>
    internal AccessPin TouchElements(byte* memory, nuint length, MemoryProtection access)
    {
        if (IsDisposed) throw RegionDisposed();
        return CanTouch ? AccessPin.TryBegin(this, OffsetOf(memory), length, access, brief: true, out _) : default;
    }

    /// <summary>Where in the memory an address of a slice lies.</summary>
    internal ulong OffsetOf(byte* memory) => (ulong)(memory - _start);

    /// <summary>
    /// Pins for one access, which does not wait for a page and ends at once: a kind that can make sure of that overrides it, and
    /// <see cref="EndTouch"/>.
    /// </summary>
    private protected virtual nint BeginTouch(ulong offset, ulong length, MemoryProtection access, out object? state, out int error) =>
        Pin(offset, length, access, out state, out error);

    private protected virtual void EndTouch(nint address, ulong length, object? state) => Unpin(address, length, state);

    /// <summary>Whether what is touched between <see cref="BeginTouch"/> and <see cref="EndTouch"/> is sure to be there.</summary>
    internal virtual bool CanTouch => false;

    /// <summary>The error where <see cref="BeginTouch"/> fails.</summary>
    private protected virtual GuestMemoryException NotTouchable(ulong offset, MemoryProtection access, int error) => NotAccessible(offset, access, error);

    /// <summary>Marks what was written, or says that the memory was taken away. The compiler inlines it where writes are mostly tracked.</summary>
    internal void Mark(ulong origin, ulong length)
    {
        if ((State & Disposed) != 0) throw RegionDisposed();
        BitmapSlice.Mark(_bitmap!, origin, length);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private nuint ReadOtherwise(byte* memory, byte* local, nuint length, out int error)
    {
        var done = CopyWhileDirect(local, memory, length);
        if (!IsStillThere()) throw RegionDisposed();
        error = 0;
        while (done < length && error == 0)
        {
            var piece = (int)Math.Min(length - done, Longest);
            done += Checked(ReadCore(OffsetOf(memory) + done, new Span<byte>(local + done, piece), out error), piece, ref error);
        }

        return done;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private nuint WriteOtherwise(byte* memory, byte* local, nuint length, out int error)
    {
        var done = CopyWhileDirect(memory, local, length);
        if (IsDisposed) throw RegionDisposed();
        error = 0;
        while (done < length && error == 0)
        {
            var piece = (int)Math.Min(length - done, Longest);
            done += Checked(WriteCore(OffsetOf(memory) + done, new ReadOnlySpan<byte>(local + done, piece), out error), piece, ref error);
        }

        return done;
    }

    /// <summary>Holds a kind to its word: what is missing has an error number.</summary>
    private static nuint Checked(int count, int asked, ref int error)
    {
        if (count < 0 || count > asked) throw new InvalidOperationException($"A copy of {asked} bytes returned {count}.");
        if (count < asked && error == 0) error = Errno.EIO;
        return (nuint)count;
    }

    /// <summary>Memory that is accessible at an address until disposal.</summary>
    internal readonly ref struct AccessPin
    {
        private readonly VolatileMemory? _memory;
        private readonly object? _state;
        private readonly ulong _length;
        private readonly bool _brief;

        /// <summary>Memory that is simply there.</summary>
        public AccessPin(byte* address) => Address = address;

        private AccessPin(VolatileMemory memory, nint address, ulong length, bool brief, object? state)
        {
            Address = (byte*)address;
            _memory = memory;
            _length = length;
            _brief = brief;
            _state = state;
        }

        public byte* Address { get; }

        /// <summary>Pins; where that cannot be done there is an error number, and nothing to dispose of.</summary>
        [MethodImpl(MethodImplOptions.NoInlining)]
        public static AccessPin TryBegin(VolatileMemory memory, ulong offset, ulong length, MemoryProtection access, bool brief, out int error)
        {
            if (memory.IsDisposed) throw RegionDisposed();
            var address = brief ? memory.BeginTouch(offset, length, access, out var state, out error) : memory.Pin(offset, length, access, out state, out error);
            return error == 0 ? new AccessPin(memory, address, length, brief, state) : default;
        }

        /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed; HostAddressNotAvailable.</exception>
        [MethodImpl(MethodImplOptions.NoInlining)]
        public static AccessPin Begin(VolatileMemory memory, ulong offset, ulong length, MemoryProtection access, bool brief)
        {
            var pin = TryBegin(memory, offset, length, access, brief, out var error);
            if (error == 0) return pin;
            access = access.HasWrite() ? MemoryProtection.Write : MemoryProtection.Read;
            throw (brief ? memory.NotTouchable(offset, access, error) : memory.NotAccessible(offset, access, error));
        }

        public void Dispose()
        {
            if (_memory is null) return;
            if (_brief) _memory.EndTouch((nint)Address, _length, _state);
            else _memory.Unpin((nint)Address, _length, _state);
        }
    }
}
