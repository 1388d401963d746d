namespace GuestMemory.Core;

/// <summary>Bytes with a position as a source (vm-memory's ReadVolatile of a Cursor).</summary>
/// <param name="bytes">The bytes.</param>
public sealed class CursorSource(ReadOnlyMemory<byte> bytes) : IReadVolatile
{
    /// <summary>Where the next byte is read; past the end there is none.</summary>
    public ulong Position { get; set; }

    /// <inheritdoc/>
    public ulong ReadVolatile(VolatileSlice slice)
    {
        if (slice.IsEmpty) return 0;
        var count = (ulong)slice.Write(0, Remaining);
        Position += count;
        return count;
    }

    /// <summary>Fills a slice; where there are too few bytes neither it nor the position changes.</summary>
    /// <exception cref="GuestMemoryException">UnexpectedEof.</exception>
    public void ReadExactVolatile(VolatileSlice slice)
    {
        if ((ulong)Remaining.Length < slice.Size) throw VolatileStreams.UnexpectedEof();
        ReadVolatile(slice);
    }

    private ReadOnlySpan<byte> Remaining => bytes.Span[(int)Math.Min(Position, (ulong)bytes.Length)..];
}
