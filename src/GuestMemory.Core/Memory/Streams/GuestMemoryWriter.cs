using System.Buffers;
using System.Diagnostics;

namespace GuestMemory.Core;

/// <summary>
/// Guest memory as a writer of buffers, for serializers: what is advanced over is copied into the memory, and marked dirty. A buffer is the
/// writer's own until then, so that the guest never sees half of what is being prepared, and no span of the memory is handed out.
/// </summary>
/// <param name="memory">The memory, which stays its owner's.</param>
/// <param name="address">Where the first byte goes.</param>
public sealed class GuestMemoryWriter(GuestMemoryMmap memory, GuestAddress address) : IBufferWriter<byte>
{
    private const int Least = 4096;

    private byte[] _buffer = [];

    /// <summary>Where the next byte goes.</summary>
    public GuestAddress Address { get; private set; } = address;

    /// <summary>Copies the first bytes of the last buffer into the memory.</summary>
    /// <param name="count">How many.</param>
    /// <exception cref="ArgumentOutOfRangeException">The buffer has not so many.</exception>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress, PartialBuffer: not all of them are mapped, and the address stays; PageNotAccessible; RegionDisposed.</exception>
    public void Advance(int count)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(count);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(count, _buffer.Length);
        memory.WriteExact(Address, _buffer.AsSpan(0, count));
        Address = Address.CheckedAdd((ulong)count) ?? throw new UnreachableException();
    }

    /// <inheritdoc/>
    public Memory<byte> GetMemory(int sizeHint = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(sizeHint);
        // The former one may still be read by who got it, but nothing of it is advanced over any more.
        if (_buffer.Length < Math.Max(sizeHint, 1)) _buffer = new byte[Math.Max(sizeHint, Least)];
        return _buffer;
    }

    /// <inheritdoc/>
    public Span<byte> GetSpan(int sizeHint = 0) => GetMemory(sizeHint).Span;
}
