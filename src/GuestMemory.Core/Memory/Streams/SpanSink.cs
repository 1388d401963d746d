namespace GuestMemory.Core;

/// <summary>A buffer as a sink (vm-memory's WriteVolatile of a mutable byte slice): what was filled is no longer in it.</summary>
/// <param name="buffer">The buffer.</param>
public ref struct SpanSink(Span<byte> buffer) : IWriteVolatile
{
    /// <summary>The room that is left.</summary>
    public Span<byte> Remaining { get; private set; } = buffer;

    /// <inheritdoc/>
    public ulong WriteVolatile(VolatileSlice slice)
    {
        if (slice.IsEmpty) return 0;
        var count = slice.Read(0, Remaining);
        Remaining = Remaining[count..];
        return (ulong)count;
    }

    /// <summary>Writes all of a slice; where there is too little room, what fits is written.</summary>
    /// <exception cref="GuestMemoryException">WriteZero.</exception>
    public void WriteAllVolatile(VolatileSlice slice)
    {
        if (WriteVolatile(slice) != slice.Size) throw VolatileStreams.WriteZero();
    }
}
