using System.Diagnostics.CodeAnalysis;

namespace GuestMemory.Core;

/// <summary>The slices of a range of guest memory, one a region, made as they are asked for (vm-memory's GuestMemoryBackendSliceIterator).</summary>
[SuppressMessage("Naming", "CA1710:Identifiers should have correct suffix", Justification = "It is enumerated by foreach alone.")]
public struct GuestMemorySlices
{
    private readonly GuestMemoryMmap _memory;
    private readonly MemoryProtection _access;
    private readonly bool _throwLater;
    private GuestAddress _address;
    private ulong _count;
    private bool _started;

    internal GuestMemorySlices(GuestMemoryMmap memory, GuestAddress address, ulong count, MemoryProtection access, bool throwLater)
    {
        _memory = memory;
        _address = address;
        _count = count;
        _access = access;
        _throwLater = throwLater;
    }

    /// <summary>The slice of the moment.</summary>
    public VolatileSlice Current { get; private set; }

    /// <summary>Itself: foreach asks for it.</summary>
    public readonly GuestMemorySlices GetEnumerator() => this;

    /// <summary>The same slices, with the range's end where the first hole is: only what is wrong at once is an error.</summary>
    public readonly GuestMemorySlices StopOnError() => new(_memory, _address, _count, _access, throwLater: false);

    /// <summary>Goes on to the next slice; false after the last one, and after an error.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress: the range goes on where nothing is mapped. PageNotAccessible: where the access is not allowed.</exception>
    public bool MoveNext()
    {
        if (_count == 0) return false;
        var left = _count;
        // Whatever goes wrong now, it was the last one.
        _count = 0;
        if (_started && !_throwLater && !_memory.CheckRange(_address, 1, _access)) return false;
        Current = _memory.FirstSlice(_address, left, _access);
        _count = left - Current.Size;
        // No region reaches to 2^64, so the sum does not pass it.
        _address += Current.Size;
        _started = true;
        return true;
    }
}
