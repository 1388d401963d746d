using System.Buffers.Binary;
using System.Globalization;
using GuestMemory.Core.Images;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>An image of compressed chunks. Every thread keeps the chunk that it unpacked last.</summary>
internal sealed unsafe class ChunkedSource : PageSource
{
    private readonly ImageFile _file;
    private readonly byte[] _index;
    private readonly int _chunkSize;
    private readonly ChunkCompression _compression;

    /// <summary>Takes the file over where it succeeds.</summary>
    /// <exception cref="GuestMemoryException">InvalidImage.</exception>
    public ChunkedSource(ImageFile file)
    {
        _file = file;
        (Length, _chunkSize, _compression, _index) = ChunkedImage.ReadIndex(file.Handle, file.Path);
    }

    public override string Name => _file.Path;

    public override ulong Length { get; }

    public override string Layout => string.Create(CultureInfo.InvariantCulture, $"{Length} bytes in chunks of {_chunkSize}, index {ChunkedImage.Crc(_index):x8}");

    public override int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run)
    {
        run = default;
        var number = (long)(offset / (ulong)_chunkSize);
        var inside = offset % (ulong)_chunkSize;
        var entry = _index.AsSpan((int)number * ChunkedImage.EntrySize, ChunkedImage.EntrySize);
        var stored = (int)BinaryPrimitives.ReadUInt32LittleEndian(entry[8..]);
        length = Math.Min(length, (ulong)_chunkSize - inside);
        if (stored == 0)
        {
            run = new PageRunData(null, length);
            return 0;
        }

        var chunk = scratch.Chunk((nuint)_chunkSize);
        if (chunk is null)
        {
            scratch.ChunkNumber = -1;
            return Errno.ENOMEM;
        }

        if (scratch.ChunkNumber != number)
        {
            scratch.ChunkNumber = -1;
            var error = Unpack(entry, stored, (int)Math.Min((ulong)_chunkSize, Length - ((ulong)number * (ulong)_chunkSize)), chunk, scratch);
            if (error != 0) return error;
            scratch.ChunkNumber = number;
        }

        run = new PageRunData(chunk + inside, length);
        return 0;
    }

    public override void Dispose() => _file.Dispose();

    private int Unpack(ReadOnlySpan<byte> entry, int stored, int size, byte* chunk, PageScratch scratch)
    {
        var target = new Span<byte>(chunk, size);
        var room = stored == size ? chunk : scratch.Packed((nuint)_chunkSize);
        if (room is null) return Errno.ENOMEM;
        var packed = new Span<byte>(room, stored);
        try
        {
            if (RandomAccess.Read(_file.Handle, packed, (long)BinaryPrimitives.ReadUInt64LittleEndian(entry)) != stored) return Errno.EIO;
        }
        catch (IOException)
        {
            return Errno.EIO;
        }

        if (ChunkedImage.Crc(packed) != BinaryPrimitives.ReadUInt32LittleEndian(entry[12..])) return Errno.EBADMSG;
        if (stored != size && !ChunkCodec.TryUnpack(_compression, packed, target)) return Errno.EBADMSG;
        // What a page has behind the end of the image is zero.
        new Span<byte>(chunk + size, _chunkSize - size).Clear();
        return 0;
    }
}
