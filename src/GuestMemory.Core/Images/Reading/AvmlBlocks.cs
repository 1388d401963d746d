using System.Buffers;
using System.Buffers.Binary;
using GuestMemory.Core.Interop;
using Snappier;

namespace GuestMemory.Core.Images;

/// <summary>
/// An AVML file, version 2: behind each <see cref="LimeFile">header</see> its range as a stream of Snappy frames, and the length of that stream (8 bytes).
/// The frames are found by their headers when the file is opened, and unpacked when their bytes are read. Their positions are guest addresses.
/// </summary>
internal sealed class AvmlBlocks : ImageBlocks
{
    /// <summary>The most that a frame unpacks to.</summary>
    public const int MaxFrame = 1 << 16;

    // A place where a block was left out.
    private const long LeftOut = -1;

    private const int Compressed = 0;
    private const int Uncompressed = 1;
    private const int FirstSkippable = 0x80;
    private const int StreamBegin = 0xff;
    private const int CrcSize = 4;

    private readonly List<ulong> _addresses = [];
    private readonly List<(ulong Offset, int Size)> _frames = [];

    private AvmlBlocks(ImageBytes image)
        : base(MaxFrame) => Image = image;

    private ImageBytes Image { get; }

    /// <summary>The bytes of blocks that were left out of the file, and read as zeros.</summary>
    public ulong Omitted { get; private set; }

    /// <summary>Reads where the frames are.</summary>
    /// <param name="image">The file.</param>
    /// <param name="extents">The ranges of memory, with those that were left out.</param>
    /// <param name="cancellation">Ends it.</param>
    /// <exception cref="GuestMemoryException">InvalidImage; ImageUnsupported: another version.</exception>
    public static AvmlBlocks Open(ImageBytes image, out List<ImageExtent> extents, CancellationToken cancellation)
    {
        var blocks = new AvmlBlocks(image);
        var ranges = new List<(ImageExtent Extent, int FirstFrame, int EndFrame)>();
        for (ulong at = 0; at < image.Length;)
        {
            var (address, size) = LimeFile.ReadHeader(image, at, LimeFile.AvmlMagic, 2, "AVML");
            LimeFile.RequireRoom(ranges.Count, image.Path);
            at += LimeFile.HeaderSize;
            var first = blocks._frames.Count;
            at = blocks.ReadFrames(address, size, at, cancellation);
            ranges.Add((new ImageExtent(address, size, at, size), first, blocks._frames.Count));
        }

        blocks.Sort(ranges);
        extents = LimeFile.AddLeftOut(ranges.ConvertAll(static range => range.Extent), out var omitted);
        blocks.Omitted = omitted;
        return blocks;
    }

    public override long Find(ulong position, out ulong start, out int size)
    {
        var number = _addresses.BinarySearch(position);
        if (number < 0) number = ~number - 1;
        start = _addresses[number];
        size = _frames[number].Size;
        if (position - start < (ulong)size) return number;
        // What was left out is a multiple of a frame long.
        var end = start + (ulong)size;
        start = end + ((position - end) / MaxFrame * MaxFrame);
        size = MaxFrame;
        return LeftOut;
    }

    protected override int TryUnpack(long number, Span<byte> target)
    {
        if (number == LeftOut)
        {
            target.Clear();
            return 0;
        }

        var (offset, size) = _frames[(int)number];
        Span<byte> begin = stackalloc byte[4 + CrcSize];
        if (Image.TryRead(offset, begin, out var error) < begin.Length) return error;
        var length = LengthOf(begin) - CrcSize;
        // What the file says now: it may have been overwritten.
        if (length <= 0 || length > Snappy.GetMaxCompressedLength(MaxFrame) || (begin[0] != Compressed && length != size)) return Errno.EBADMSG;
        var rented = ArrayPool<byte>.Shared.Rent(length);
        try
        {
            var packed = rented.AsSpan(0, length);
            if (Image.TryRead(offset + (ulong)begin.Length, packed, out error) < length) return error;
            if (begin[0] == Compressed)
            {
                if (!SnappyCodec.TryUnpack(packed, target)) return Errno.EBADMSG;
            }
            else
            {
                packed.CopyTo(target);
            }

            var crc = ChunkedImage.Crc(target);
            // The framing format masks it.
            return unchecked(uint.RotateRight(crc, 15) + 0xa282ead8) == BinaryPrimitives.ReadUInt32LittleEndian(begin[4..]) ? 0 : Errno.EBADMSG;
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(rented);
        }
    }

    private static int LengthOf(ReadOnlySpan<byte> header) => header[1] | (header[2] << 8) | (header[3] << 16);

    /// <summary>Reads the headers of the frames of a range; returns where the next range begins.</summary>
    private ulong ReadFrames(ulong address, ulong size, ulong at, CancellationToken cancellation)
    {
        var begin = at;
        ulong done = 0;
        // The header, the CRC and the number of at most 5 bytes that a compressed frame begins with.
        Span<byte> buffer = stackalloc byte[4 + CrcSize + 5];
        Span<byte> name = stackalloc byte[6];
        while (done < size)
        {
            cancellation.ThrowIfCancellationRequested();
            var header = buffer[..Image.TryRead(at, buffer, out _)];
            var length = header.Length < 4 ? -1 : LengthOf(header);
            if (length < 0 || at + 4 + (ulong)length > Image.Length) throw MemoryImage.Invalid(Image.Path, $"its range at 0x{address:x} ends after 0x{done:x} of 0x{size:x} bytes; it may not have been completed");
            if (header[0] is Compressed or Uncompressed)
            {
                if (length <= CrcSize) throw Damaged(at);
                var unpacked = header[0] == Compressed ? SnappyCodec.LengthOf(header[(4 + CrcSize)..]) : length - CrcSize;
                if (unpacked is < 0 or > MaxFrame || (ulong)unpacked > size - done || length - CrcSize > Snappy.GetMaxCompressedLength(MaxFrame)) throw Damaged(at);
                if (unpacked > 0)
                {
                    if (_frames.Count == int.MaxValue / 32) throw MemoryImage.Unsupported(Image.Path, "an AVML file of too many frames");
                    _addresses.Add(address + done);
                    _frames.Add((at, unpacked));
                    done += (ulong)unpacked;
                }
            }
            else if (header[0] == StreamBegin)
            {
                if (length != name.Length) throw Damaged(at);
                Image.ReadExact(at + 4, name);
                if (!name.SequenceEqual("sNaPpY"u8)) throw Damaged(at);
            }
            else if (header[0] < FirstSkippable)
            {
                throw Damaged(at);
            }

            at += 4 + (ulong)length;
        }

        Span<byte> stored = stackalloc byte[8];
        Image.ReadExact(at, stored);
        if (BinaryPrimitives.ReadUInt64LittleEndian(stored) != at - begin) throw MemoryImage.Invalid(Image.Path, $"its range at 0x{address:x} does not have the length that stands behind it");
        return at + (ulong)stored.Length;
    }

    /// <summary>Has the frames in the order of their addresses.</summary>
    private void Sort(List<(ImageExtent Extent, int FirstFrame, int EndFrame)> ranges)
    {
        var isSorted = true;
        for (var i = 1; i < ranges.Count && isSorted; i++) isSorted = ranges[i].Extent.Address >= ranges[i - 1].Extent.End;
        if (isSorted) return;
        ranges.Sort(static (one, other) => one.Extent.Address.CompareTo(other.Extent.Address));
        for (var i = 1; i < ranges.Count; i++)
        {
            if (ranges[i].Extent.Address < ranges[i - 1].Extent.End) throw MemoryImage.Invalid(Image.Path, $"two of its ranges have guest address 0x{ranges[i].Extent.Address:x}");
        }

        ulong[] addresses = [.. _addresses];
        (ulong, int)[] frames = [.. _frames];
        _addresses.Clear();
        _frames.Clear();
        foreach (var (_, first, end) in ranges)
        {
            _addresses.AddRange(addresses[first..end]);
            _frames.AddRange(frames[first..end]);
        }
    }

    private GuestMemoryException Damaged(ulong at) => MemoryImage.Invalid(Image.Path, $"at offset 0x{at:x} stands no frame of Snappy");
}
