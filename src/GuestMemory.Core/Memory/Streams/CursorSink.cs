namespace GuestMemory.Core;

/// <summary>A buffer with a position as a sink (vm-memory's WriteVolatile of a Cursor).</summary>
/// <param name="buffer">The buffer.</param>
public sealed class CursorSink(Memory<byte> buffer) : IWriteVolatile
{
    /// <summary>Where the next byte is written; past the end there is no room.</summary>
    public ulong Position { get; set; }

    /// <inheritdoc/>
    public ulong WriteVolatile(VolatileSlice slice)
    {
        if (slice.IsEmpty) return 0;
        var count = (ulong)slice.Read(0, buffer.Span[(int)Math.Min(Position, (ulong)buffer.Length)..]);
        Position += count;
        return count;
    }

    /// <summary>Writes all of a slice; where there is too little room, what fits is written.</summary>
    /// <exception cref="GuestMemoryException">WriteZero.</exception>
    public void WriteAllVolatile(VolatileSlice slice)
    {
        if (WriteVolatile(slice) != slice.Size) throw VolatileStreams.WriteZero();
    }
}
