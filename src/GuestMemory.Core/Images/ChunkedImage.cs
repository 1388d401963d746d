using System.Buffers.Binary;
using System.Numerics;
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Images;

/// <summary>
/// Memory images in chunks that are compressed independently, so that any page can be read without what stands before it. All
/// numbers are little-endian. A header of 32 bytes: "GMCHUNK1", the length of the memory (8), the bytes of a chunk (4), their
/// compression (4: 0 for Brotli, 1 for zlib), zeros. The chunks, in any order. The index: for each chunk its offset in the file (8), its stored bytes (4) and their CRC-32C (4). A footer
/// of 32 bytes: the index's offset (8), the number of chunks (4), the index's CRC-32C (4), the length again (8), "GMCHEND1". A chunk
/// of no stored bytes is all zeros, one with all its bytes is stored as it is, any other is compressed.
/// </summary>
public static class ChunkedImage
{
    /// <summary>The bytes of a chunk.</summary>
    public const int ChunkSize = 64 << 10;

    internal const int EndSize = 32;
    internal const int EntrySize = 16;

    private const int MaxChunkSize = 16 << 20;

    private static ReadOnlySpan<byte> Magic => "GMCHUNK1"u8;

    private static ReadOnlySpan<byte> EndMagic => "GMCHEND1"u8;

    /// <summary>Writes the whole memory; the file is made beside its place and renamed when it is complete.</summary>
    /// <param name="memory">The memory.</param>
    /// <param name="path">The file to make.</param>
    /// <param name="overwrite">Whether a file that is there may be replaced.</param>
    /// <param name="compression">How the chunks are compressed.</param>
    /// <param name="digest">Whether to compute the file's SHA-256, and to write it beside the file (FILE.sha256).</param>
    /// <param name="progress">Told the bytes of memory done.</param>
    /// <param name="cancellation">Ends the export; what was written is removed.</param>
    /// <exception cref="GuestMemoryException">FileExists, NotAFile, TargetIsMapped; DiskFull; PageNotAccessible.</exception>
    public static ImageInfo Write(GuestMemoryMmap memory, string path, bool overwrite, ChunkCompression compression = ChunkCompression.Brotli, bool digest = false, Action<ulong>? progress = null, CancellationToken cancellation = default) =>
        WholeImage.Write(memory, path, ImageFormat.Chunked, overwrite, digest, isSparse: false, progress, cancellation, (output, reader) =>
        {
            var writer = new Writer(output, memory.Size, compression);
            foreach (var region in memory.Regions) reader.Copy(region, (_, piece) => writer.Append(piece));
            writer.Finish();
        });

    /// <summary>Whether a file begins as such an image does.</summary>
    internal static bool IsOne(SafeFileHandle file)
    {
        Span<byte> begin = stackalloc byte[8];
        try
        {
            return RandomAccess.Read(file, begin, 0) == 8 && begin.SequenceEqual(Magic);
        }
        catch (IOException)
        {
            return false;
        }
    }

    /// <summary>Reads and checks header, footer and index; nothing of them is believed before.</summary>
    /// <exception cref="GuestMemoryException">InvalidImage.</exception>
    internal static (ulong Length, int ChunkSize, ChunkCompression Compression, byte[] Index) ReadIndex(SafeFileHandle file, string path)
    {
        var size = RandomAccess.GetLength(file);
        if (size < 2 * EndSize) throw Invalid(path, "it is too short");
        Span<byte> header = stackalloc byte[EndSize];
        Span<byte> footer = stackalloc byte[EndSize];
        if (RandomAccess.Read(file, header, 0) != EndSize || RandomAccess.Read(file, footer, size - EndSize) != EndSize) throw Invalid(path, "it changes");
        if (!header[..8].SequenceEqual(Magic) || !footer[24..].SequenceEqual(EndMagic)) throw Invalid(path, "its end is missing; the export may not have been completed");
        var length = BinaryPrimitives.ReadUInt64LittleEndian(header[8..]);
        var chunk = BinaryPrimitives.ReadUInt32LittleEndian(header[16..]);
        if (BinaryPrimitives.ReadUInt64LittleEndian(footer[16..]) != length) throw Invalid(path, "its beginning and its end contradict each other");
        if (chunk < HostPage.Size || chunk > MaxChunkSize || !BitOperations.IsPow2(chunk)) throw Invalid(path, $"its chunks cannot have {chunk} bytes");
        var compression = (ChunkCompression)BinaryPrimitives.ReadUInt32LittleEndian(header[20..]);
        if (!Enum.IsDefined(compression)) throw Invalid(path, $"its compression ({(uint)compression}) is not known");
        var indexOffset = BinaryPrimitives.ReadUInt64LittleEndian(footer);
        var count = BinaryPrimitives.ReadUInt32LittleEndian(footer[8..]);
        if (length == 0 || (length - 1) / chunk + 1 != count) throw Invalid(path, $"{count} chunks of {chunk} bytes are not {length} bytes");
        var indexSize = (ulong)count * EntrySize;
        if (indexSize > int.MaxValue || indexOffset < EndSize || indexOffset > (ulong)size || (ulong)size - indexOffset != indexSize + EndSize) throw Invalid(path, "its index is not where it must be");
        var index = GC.AllocateUninitializedArray<byte>((int)indexSize);
        if (RandomAccess.Read(file, index, (long)indexOffset) != index.Length) throw Invalid(path, "it changes");
        if (Crc(index) != BinaryPrimitives.ReadUInt32LittleEndian(footer[12..])) throw Invalid(path, "its index is damaged");
        for (var i = 0; i < index.Length; i += EntrySize)
        {
            var at = BinaryPrimitives.ReadUInt64LittleEndian(index.AsSpan(i));
            var stored = BinaryPrimitives.ReadUInt32LittleEndian(index.AsSpan(i + 8));
            if (stored > chunk || (stored > 0 && (at < EndSize || at > indexOffset || stored > indexOffset - at))) throw Invalid(path, $"chunk {i / EntrySize} is not where it could be");
        }

        return (length, (int)chunk, compression, index);
    }

    internal static uint Crc(ReadOnlySpan<byte> data)
    {
        var crc = uint.MaxValue;
        foreach (var word in MemoryMarshal.Cast<byte, ulong>(data)) crc = BitOperations.Crc32C(crc, word);
        foreach (var value in data[(data.Length & ~7)..]) crc = BitOperations.Crc32C(crc, value);
        return ~crc;
    }

    private static GuestMemoryException Invalid(string path, string why) =>
        new(GuestMemoryError.InvalidImage, $"{path} is not a whole image of chunks: {why}.");

    /// <summary>Cuts what comes into chunks and writes them.</summary>
    private sealed class Writer
    {
        private readonly ImageOutput _output;
        private readonly ulong _length;
        private readonly ChunkCompression _compression;
        private readonly byte[] _chunk = new byte[ChunkSize];
        private readonly byte[] _packed = new byte[ChunkSize - 1];
        private readonly byte[] _index;
        private int _filled;
        private int _chunks;

        public Writer(ImageOutput output, ulong length, ChunkCompression compression)
        {
            _output = output;
            _length = length;
            _compression = compression;
            _index = new byte[checked((int)((length + ChunkSize - 1) / ChunkSize * EntrySize))];
            Span<byte> header = stackalloc byte[EndSize];
            header.Clear();
            Magic.CopyTo(header);
            BinaryPrimitives.WriteUInt64LittleEndian(header[8..], length);
            BinaryPrimitives.WriteUInt32LittleEndian(header[16..], ChunkSize);
            BinaryPrimitives.WriteUInt32LittleEndian(header[20..], (uint)compression);
            output.Append(header);
        }

        public void Append(ReadOnlySpan<byte> data)
        {
            while (!data.IsEmpty)
            {
                var part = Math.Min(data.Length, ChunkSize - _filled);
                data[..part].CopyTo(_chunk.AsSpan(_filled));
                data = data[part..];
                _filled += part;
                if (_filled == ChunkSize) Flush();
            }
        }

        public void Finish()
        {
            if (_filled > 0) Flush();
            Span<byte> footer = stackalloc byte[EndSize];
            BinaryPrimitives.WriteUInt64LittleEndian(footer, _output.Position);
            BinaryPrimitives.WriteUInt32LittleEndian(footer[8..], (uint)_chunks);
            BinaryPrimitives.WriteUInt32LittleEndian(footer[12..], Crc(_index));
            BinaryPrimitives.WriteUInt64LittleEndian(footer[16..], _length);
            EndMagic.CopyTo(footer[24..]);
            _output.Append(_index);
            _output.Append(footer);
        }

        private void Flush()
        {
            var chunk = _chunk.AsSpan(0, _filled);
            ReadOnlySpan<byte> stored = [];
            var pages = 0;
            if (chunk.ContainsAnyExcept((byte)0))
            {
                stored = ChunkCodec.TryPack(_compression, chunk, _packed, _filled - 1, out var packed) ? _packed.AsSpan(0, packed) : chunk;
                pages = (_filled + (int)HostPage.Size - 1) / (int)HostPage.Size;
            }

            var entry = _index.AsSpan(_chunks++ * EntrySize, EntrySize);
            BinaryPrimitives.WriteUInt64LittleEndian(entry, stored.IsEmpty ? 0 : _output.Position);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[8..], (uint)stored.Length);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[12..], stored.IsEmpty ? 0 : Crc(stored));
            _output.Append(stored, pages);
            _filled = 0;
        }
    }
}
