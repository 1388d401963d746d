namespace GuestMemory.Core;

/// <summary>Bytes as a source (vm-memory's ReadVolatile of a byte slice): what was read is no longer in it.</summary>
/// <param name="bytes">The bytes.</param>
public ref struct SpanSource(ReadOnlySpan<byte> bytes) : IReadVolatile
{
    /// <summary>What was not read yet.</summary>
    public ReadOnlySpan<byte> Remaining { get; private set; } = bytes;

    /// <inheritdoc/>
    public ulong ReadVolatile(VolatileSlice slice)
    {
        if (slice.IsEmpty) return 0;
        var count = slice.Write(0, Remaining);
        Remaining = Remaining[count..];
        return (ulong)count;
    }

    /// <summary>Fills a slice; where there are too few bytes nothing is read.</summary>
    /// <exception cref="GuestMemoryException">UnexpectedEof.</exception>
    public void ReadExactVolatile(VolatileSlice slice)
    {
        if ((ulong)Remaining.Length < slice.Size) throw VolatileStreams.UnexpectedEof();
        ReadVolatile(slice);
    }
}
