using System.Buffers;

namespace GuestMemory.Core;

/// <summary>A .NET stream as source and sink, through a buffer.</summary>
/// <param name="stream">The stream, which stays its owner's.</param>
public sealed class StreamAdapter(Stream stream) : IReadVolatile, IWriteVolatile
{
    private const int Piece = 64 << 10;

    /// <inheritdoc/>
    public ulong ReadVolatile(VolatileSlice slice)
    {
        var buffer = ArrayPool<byte>.Shared.Rent((int)Math.Min(Piece, slice.Size));
        try
        {
            var count = stream.Read(buffer, 0, (int)Math.Min((ulong)buffer.Length, slice.Size));
            slice.WriteExact(0, buffer.AsSpan(0, count));
            return (ulong)count;
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    /// <inheritdoc/>
    public void ReadExactVolatile(VolatileSlice slice)
    {
        var self = this;
        VolatileStreams.ReadExact(ref self, slice);
    }

    /// <inheritdoc/>
    public ulong WriteVolatile(VolatileSlice slice)
    {
        if (slice.IsEmpty) return 0;
        var buffer = ArrayPool<byte>.Shared.Rent((int)Math.Min(Piece, slice.Size));
        try
        {
            var count = slice.Read(0, buffer);
            stream.Write(buffer, 0, count);
            return (ulong)count;
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    /// <inheritdoc/>
    public void WriteAllVolatile(VolatileSlice slice)
    {
        var self = this;
        VolatileStreams.WriteAll(ref self, slice);
    }
}
