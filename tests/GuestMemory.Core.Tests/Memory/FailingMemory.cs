using System.Runtime.CompilerServices;

namespace GuestMemory.Core.Tests;

/// <summary>Memory whose guard fails at an access: an array that is pinned for each, or copied half-way.</summary>
/// <param name="size">The bytes.</param>
/// <param name="copies">Whether bytes are copied by the kind itself; else they are pinned for it.</param>
internal sealed unsafe class FailingMemory(ulong size, bool copies) : VolatileMemory(size)
{
    private readonly byte[] _bytes = GC.AllocateArray<byte>((int)size, pinned: true);

    /// <summary>The access that fails, counted from here on: 1 is the next; 0 none. It fails once.</summary>
    public int FailAt { get; set; }

    /// <summary>What is pinned now.</summary>
    public int Pins { get; private set; }

    public override bool MayWait => false;

    protected override int ReadCore(ulong offset, Span<byte> buffer, out int error)
    {
        if (!copies) return base.ReadCore(offset, buffer, out error);
        var count = Count(buffer.Length, out error);
        _bytes.AsSpan((int)offset, count).CopyTo(buffer);
        return count;
    }

    protected override int WriteCore(ulong offset, ReadOnlySpan<byte> buffer, out int error)
    {
        if (!copies) return base.WriteCore(offset, buffer, out error);
        var count = Count(buffer.Length, out error);
        buffer[..count].CopyTo(_bytes.AsSpan((int)offset));
        return count;
    }

    protected override nint Pin(ulong offset, ulong length, MemoryProtection access, out object? state, out int error)
    {
        state = null;
        Count(1, out error);
        if (error != 0) return 0;
        Pins++;
        return (nint)Unsafe.AsPointer(ref _bytes[0]) + (nint)offset;
    }

    protected override void Unpin(nint address, ulong length, object? state) => Pins--;

    protected override string WhyNot(MemoryProtection access, int error) => $"it is the {error}th error";

    private int Count(int asked, out int error)
    {
        error = FailAt > 0 && --FailAt == 0 ? Errno.ENOSPC : 0;
        return error == 0 ? asked : asked / 2;
    }
}
