using System.Runtime.InteropServices;

namespace GuestMemory.Core;

/// <content>Set operations, slices and files.</content>
public sealed partial class DirtyBitmap
{
    private const int Piece = 1 << 20;

    /// <summary>The pages that are dirty in both.</summary>
    /// <param name="other">A bitmap of the same memory: start, size and page size are the same.</param>
    /// <exception cref="GuestMemoryException">ValueNotSupported: it covers other memory.</exception>
    public DirtyBitmap And(DirtyBitmap other) => Combine(other, "and", static (mine, theirs) => mine & theirs);

    /// <summary>The pages that are dirty in one of them, or in both.</summary>
    /// <param name="other">A bitmap of the same memory: start, size and page size are the same.</param>
    /// <exception cref="GuestMemoryException">ValueNotSupported: it covers other memory.</exception>
    public DirtyBitmap Or(DirtyBitmap other) => Combine(other, "or", static (mine, theirs) => mine | theirs);

    /// <summary>The pages that are dirty here and not there.</summary>
    /// <param name="other">A bitmap of the same memory: start, size and page size are the same.</param>
    /// <exception cref="GuestMemoryException">ValueNotSupported: it covers other memory.</exception>
    public DirtyBitmap Except(DirtyBitmap other) => Combine(other, "except", static (mine, theirs) => mine & ~theirs);

    /// <summary>The part of the bitmap that covers a range of the memory: a region in the log of a whole guest, for example.</summary>
    /// <param name="startAddress">The guest address of the first byte.</param>
    /// <param name="byteSize">The length of the range in bytes.</param>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress: the bitmap does not cover all of it.</exception>
    public DirtyBitmap Slice(ulong startAddress, ulong byteSize)
    {
        var offset = unchecked(startAddress - StartAddress);
        if (startAddress < StartAddress || offset > ByteSize || byteSize > ByteSize - offset)
        {
            throw new GuestMemoryException(GuestMemoryError.InvalidGuestAddress,
                $"The bitmap covers 0x{ByteSize:x} bytes at 0x{StartAddress:x}, not all of the 0x{byteSize:x} bytes at 0x{startAddress:x}.") { Address = startAddress };
        }

        if (offset < _offsetInFirstPage)
        {
            // The bitmap says nothing about the bytes before the memory.
            byteSize -= Math.Min(byteSize, _offsetInFirstPage - offset);
            offset = _offsetInFirstPage;
        }

        if (byteSize == 0) return new DirtyBitmap(startAddress, 0, PageSize, [], Source);
        var (page, offsetInFirstPage) = Math.DivRem(offset, PageSize);
        var words = _words[(int)(page >> 6)..];
        var shift = (int)(page & 63);
        for (var i = 0; shift != 0 && i < words.Length; i++) words[i] = words[i] >> shift | (i + 1 < words.Length ? words[i + 1] << 64 - shift : 0);
        return new DirtyBitmap(StartAddress + offset, byteSize, offsetInFirstPage, PageSize, words, Source);
    }

    /// <summary>The same pages at other addresses: offsets in an image or addresses of a process as guest addresses, for example.</summary>
    /// <param name="bytes">How far the addresses move; a negative number moves them down.</param>
    /// <exception cref="GuestMemoryException">GuestAddressOverflow: they would pass 0 or the last address.</exception>
    public DirtyBitmap Shift(long bytes)
    {
        var start = StartAddress + _offsetInFirstPage;
        var moved = unchecked(start + (ulong)bytes);
        var last = unchecked(moved + Math.Max(1, ByteSize - _offsetInFirstPage) - 1);
        if (bytes < 0 ? moved > start || moved < _offsetInFirstPage : moved < start || last < moved)
        {
            throw new GuestMemoryException(GuestMemoryError.GuestAddressOverflow,
                $"The bitmap covers 0x{ByteSize:x} bytes at 0x{StartAddress:x}; moved by {bytes} bytes they would pass the {(bytes < 0 ? "first" : "last")} address.") { Address = StartAddress };
        }

        return new DirtyBitmap(moved, ByteSize - _offsetInFirstPage, _offsetInFirstPage, PageSize, [.. _words], Source);
    }

    /// <summary>
    /// Writes the bitmap to a new file as a dirty log of the whole guest: page n of guest physical memory, of 4096 bytes, is bit
    /// n % 8 of byte n / 8. The part of the log below the first page is a hole in the file.
    /// </summary>
    /// <param name="path">The file; it must not exist yet.</param>
    /// <exception cref="IOException">It exists, or cannot be written.</exception>
    public void Save(string path)
    {
        // Whole words of the log; the first of them contains the first page.
        var origin = StartAddress & ~(64 * MmapLogReg.PageSize - 1);
        var last = StartAddress + Math.Max(1, ByteSize) - 1;
        var log = new AtomicBitmap(last - origin + 1, MmapLogReg.PageSize);
        MarkIn(log, origin);
        var first = (long)(origin / MmapLogReg.PageSize / 8);
        var length = (long)MmapLogReg.RequiredLength(new GuestAddress(last));
        using var file = File.OpenHandle(path, FileMode.CreateNew, FileAccess.Write);
        try
        {
            RandomAccess.SetLength(file, length);
            RandomAccess.Write(file, MemoryMarshal.AsBytes<ulong>(log.Snapshot())[..(int)(length - first)], first);
        }
        catch
        {
            File.Delete(path);
            throw;
        }
    }

    /// <summary>
    /// Reads a dirty log from a file or a memfd (/proc/PID/fd/N) without changing it. The result begins at guest address 0 and covers as
    /// many pages of 4096 bytes as the log has bits; <see cref="Slice"/> gives a part of it.
    /// </summary>
    /// <param name="path">The file.</param>
    /// <param name="offset">Where the log starts, in bytes.</param>
    /// <param name="length">Its length in bytes; null: to the end of the file.</param>
    /// <param name="cancellation">Cancels the reading.</param>
    /// <exception cref="GuestMemoryException">InvalidLog: the file is too short, or larger than any memory's log; ZeroSize; NotAFile.</exception>
    /// <exception cref="IOException">The file cannot be read.</exception>
    public static DirtyBitmap Load(string path, ulong offset = 0, ulong? length = null, CancellationToken cancellation = default)
    {
        MmapLogReg.CheckNumbers(offset, length ?? 1);
        using var file = MmapLogReg.Open(path, FileAccess.Read);
        var there = MmapLogReg.CheckLength(file, path, offset, length ?? 1);
        var size = MmapLogReg.SizeOf(length ?? there);
        var words = new ulong[(size / MmapLogReg.PageSize + 63) / 64];
        var bytes = MemoryMarshal.AsBytes(words.AsSpan())[..(int)(length ?? there)];
        for (var done = 0; done < bytes.Length;)
        {
            cancellation.ThrowIfCancellationRequested();
            var count = RandomAccess.Read(file, bytes[done..Math.Min(bytes.Length, done + Piece)], (long)offset + done);
            if (count == 0) throw new GuestMemoryException(GuestMemoryError.InvalidLog, $"{path} became shorter while it was read.");
            done += count;
        }

        return new DirtyBitmap(0, size, MmapLogReg.PageSize, words, $"log {path}");
    }

    private DirtyBitmap Combine(DirtyBitmap other, string operation, Func<ulong, ulong, ulong> combine)
    {
        ArgumentNullException.ThrowIfNull(other);
        if ((StartAddress, ByteSize, PageSize) != (other.StartAddress, other.ByteSize, other.PageSize))
        {
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported,
                $"The bitmaps do not cover the same memory: {ByteSize} bytes at 0x{StartAddress:x} in pages of {PageSize}, and {other.ByteSize} at 0x{other.StartAddress:x} in pages of {other.PageSize}. Slice() gives a part of a larger one.");
        }

        var words = new ulong[_words.Length];
        for (var i = 0; i < words.Length; i++) words[i] = combine(_words[i], other._words[i]);
        var offsetInFirstPage = Math.Min(_offsetInFirstPage, other._offsetInFirstPage);
        return new DirtyBitmap(StartAddress + offsetInFirstPage, ByteSize - offsetInFirstPage, offsetInFirstPage, PageSize, words, $"{Source} {operation} {other.Source}");
    }
}
