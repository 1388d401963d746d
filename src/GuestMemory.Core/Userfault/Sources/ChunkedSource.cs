using System.Buffers.Binary;
using System.Globalization;
using GuestMemory.Core.Images;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>An image of compressed chunks. Those that were unpacked last are kept for all threads.</summary>
internal sealed unsafe class ChunkedSource : PageSource
{
    private readonly ImageFile _file;
    private readonly byte[] _index;
    private readonly int _chunkSize;
    private readonly ChunkCompression _compression;
    private readonly ChunkCache _cache;

    /// <summary>Takes the file over where it succeeds.</summary>
    /// <exception cref="GuestMemoryException">InvalidImage.</exception>
    public ChunkedSource(ImageFile file)
    {
        _file = file;
        (Length, _chunkSize, _compression, _index) = ChunkedImage.ReadIndex(file.Handle, file.Path);
        _cache = new ChunkCache(_chunkSize);
    }

    public override string Name => _file.Path;

    public override ulong Length { get; }

    public override string Layout => string.Create(CultureInfo.InvariantCulture, $"{Length} bytes in chunks of {_chunkSize}, index {ChunkedImage.Crc(_index):x8}");

    public override int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run)
    {
        run = default;
        scratch.Unpin();
        var number = (long)(offset / (ulong)_chunkSize);
        var inside = offset % (ulong)_chunkSize;
        length = Math.Min(length, (ulong)_chunkSize - inside);
        if (StoredBytes(number) == 0)
        {
            run = new PageRunData(null, length);
            return 0;
        }

        var error = FindChunk(number, scratch, out var chunk);
        if (error == 0) run = new PageRunData(chunk + inside, length);
        return error;
    }

    public override bool IsReady(ulong offset, ulong length)
    {
        for (var number = (long)(offset / (ulong)_chunkSize); number <= LastChunk(offset, length); number++)
        {
            if (StoredBytes(number) != 0 && !_cache.Contains(number)) return false;
        }

        return true;
    }

    public override void Prepare(ulong offset, ulong length, PageScratch scratch)
    {
        for (var number = (long)(offset / (ulong)_chunkSize); number <= LastChunk(offset, length); number++)
        {
            // What cannot be unpacked is found again when it is needed.
            if (StoredBytes(number) != 0) _ = FindChunk(number, scratch, out _);
        }
    }

    public override void Dispose()
    {
        _file.Dispose();
        _cache.Dispose();
    }

    private long LastChunk(ulong offset, ulong length) => (long)((Math.Min(offset + length, Length) - 1) / (ulong)_chunkSize);

    private ReadOnlySpan<byte> Entry(long number) => _index.AsSpan((int)number * ChunkedImage.EntrySize, ChunkedImage.EntrySize);

    private int StoredBytes(long number) => (int)BinaryPrimitives.ReadUInt32LittleEndian(Entry(number)[8..]);

    /// <summary>A chunk out of the cache, pinned by the scratch; it is unpacked where it is not there.</summary>
    private int FindChunk(long number, PageScratch scratch, out byte* chunk)
    {
        chunk = null;
        var place = _cache.TryPin(number);
        if (place is null)
        {
            place = _cache.TryReserve();
            chunk = place is null ? scratch.Chunk((nuint)_chunkSize) : place.Data;
            var error = chunk is null ? Errno.ENOMEM : Unpack(Entry(number), StoredBytes(number), (int)Math.Min((ulong)_chunkSize, Length - ((ulong)number * (ulong)_chunkSize)), chunk, scratch);
            if (place is null) return error;
            if (error != 0)
            {
                _cache.Unpin(place);
                return error;
            }

            _cache.Publish(place, number);
        }

        chunk = place.Data;
        scratch.Pin(_cache, place);
        return 0;
    }

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
