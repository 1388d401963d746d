using System.Buffers;

namespace GuestMemory.Core;

/// <summary>A buffer that grows as a sink (vm-memory's WriteVolatile of a Vec): everything is appended.</summary>
/// <param name="writer">Where to.</param>
public sealed class BufferSink(IBufferWriter<byte> writer) : IWriteVolatile
{
    // What a writer is asked for; it may give more, and that is used.
    private const int Piece = 64 << 10;

    /// <inheritdoc/>
    public ulong WriteVolatile(VolatileSlice slice)
    {
        if (slice.IsEmpty) return 0;
        var count = slice.Read(0, writer.GetSpan((int)Math.Min(slice.Size, Piece)));
        writer.Advance(count);
        return (ulong)count;
    }

    /// <inheritdoc/>
    public void WriteAllVolatile(VolatileSlice slice)
    {
        var self = this;
        VolatileStreams.WriteAll(ref self, slice);
    }
}
