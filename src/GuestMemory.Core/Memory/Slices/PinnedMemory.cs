namespace GuestMemory.Core;

/// <summary>Memory that its owner keeps in place: an array, or what lies at a pointer of the caller's.</summary>
internal sealed unsafe class PinnedMemory : VolatileMemory
{
    private readonly byte* _address;

    // What must live as long as a slice does.
    private readonly object? _owner;

    public PinnedMemory(byte* address, ulong size, BitmapSlice bitmap, object? owner = null)
        : base(address, size, MemoryProtection.ReadWrite, guarded: false, bitmap.Bitmap)
    {
        _address = address;
        _owner = owner;
    }

    public override bool MayWait => false;

    protected override nint Pin(ulong offset, ulong length, MemoryProtection access, out object? state, out int error)
    {
        state = _owner;
        error = 0;
        return (nint)(_address + offset);
    }
}
