using System.Numerics;
using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <summary>
/// An integer in guest memory for atomic operations (what vm-memory's get_atomic_ref refers to). What is written
/// through it is not marked as dirty.
/// </summary>
/// <typeparam name="T">An integer of 1, 2, 4 or 8 bytes.</typeparam>
public readonly unsafe struct AtomicRef<T>
    where T : unmanaged, IBinaryInteger<T>
{
    private readonly VolatileMemory _memory;
    private readonly byte* _address;

    internal AtomicRef(VolatileMemory memory, byte* address)
    {
        _memory = memory;
        _address = address;
    }

    /// <summary>The type and the place, for debuggers: "UInt32 at offset 0x10, guarded".</summary>
    public override string ToString() => _memory is null ? "nothing" : $"{typeof(T).Name} at offset 0x{_memory.OffsetOf(_address):x}{VolatileMemory.StateText(_memory.State)}";

    /// <summary>Loads the integer.</summary>
    /// <param name="ordering">Relaxed, Acquire or SeqCst.</param>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Load(AtomicOrdering ordering)
    {
        if (!_memory.IsDirect) return LoadGuarded(ordering);
        var value = AtomicAccess.Load<T>(_address, ordering);
        _memory.Leave();
        return value;
    }

    /// <summary>Stores the integer.</summary>
    /// <param name="value">The integer.</param>
    /// <param name="ordering">Relaxed, Release or SeqCst.</param>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Store(T value, AtomicOrdering ordering)
    {
        if (_memory.IsDirect) AtomicAccess.Store(_address, value, ordering);
        else StoreGuarded(value, ordering);
        _memory.Leave();
    }

    /// <summary>Stores an integer and returns the one that was there; SeqCst.</summary>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public T Exchange(T value)
    {
        using var touch = _memory.Touch(_address, (nuint)sizeof(T), MemoryProtection.ReadWrite);
        var former = AtomicAccess.Exchange(touch.Address, value);
        _memory.Leave();
        return former;
    }

    /// <summary>Stores an integer where another one stands; returns the one that was there. SeqCst.</summary>
    /// <param name="value">What is stored.</param>
    /// <param name="comparand">What must be there.</param>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public T CompareExchange(T value, T comparand)
    {
        using var touch = _memory.Touch(_address, (nuint)sizeof(T), MemoryProtection.ReadWrite);
        var former = AtomicAccess.CompareExchange(touch.Address, value, comparand);
        _memory.Leave();
        return former;
    }

    /// <summary>Adds, wrapping around, and returns what was there; SeqCst.</summary>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public T FetchAdd(T value) => Fetch(value, static (old, operand) => unchecked(old + operand));

    /// <summary>Sets bits and returns what was there; SeqCst.</summary>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public T FetchOr(T value) => Fetch(value, static (old, operand) => old | operand);

    /// <summary>Keeps only some bits and returns what was there; SeqCst.</summary>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public T FetchAnd(T value) => Fetch(value, static (old, operand) => old & operand);

    // Apart, since what has to be undone keeps a method from being inlined.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private T LoadGuarded(AtomicOrdering ordering)
    {
        using var touch = _memory.Touch(_address, (nuint)sizeof(T), MemoryProtection.Read);
        var value = AtomicAccess.Load<T>(touch.Address, ordering);
        _memory.Leave();
        return value;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void StoreGuarded(T value, AtomicOrdering ordering)
    {
        using var touch = _memory.Touch(_address, (nuint)sizeof(T), MemoryProtection.Write);
        AtomicAccess.Store(touch.Address, value, ordering);
    }

    private T Fetch(T operand, Func<T, T, T> change)
    {
        var old = Load(AtomicOrdering.Relaxed);
        while (true)
        {
            var seen = CompareExchange(change(old, operand), old);
            if (seen == old) return old;
            old = seen;
        }
    }
}
