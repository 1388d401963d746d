using System.Buffers;
using System.Buffers.Binary;
using System.Numerics;
using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Images;

/// <summary>
/// A dump in kdump's compressed format, page by page (makedumpfile's IMPLEMENTATION and diskdump_mod.h; QEMU's dump.h): a header of a block, a second one,
/// two bitmaps (which frames are memory, and which of them are in the dump), a descriptor of 24 bytes for each frame of the second bitmap (offset 8, size 4,
/// flags 4, page flags 8), and the pages. All numbers are little-endian here; a 32-bit writer has narrower ones. Positions are guest addresses.
/// </summary>
internal sealed class KdumpBlocks : ImageBlocks
{
    private const int DescriptorSize = 24;
    private const uint Zlib = 1;
    private const uint Lzo = 2;
    private const uint Snappy = 4;
    private const uint Zstd = 0x20;
    private const int UtsNameField = 65;
    private const int MinPage = 4096;
    private const int MaxPage = 1 << 16;
    private const int NewestVersion = 6;

    // 8 TiB of pages of 4096 bytes.
    private const int MaxBitmap = 256 << 20;
    private const int WordsPerRank = 8;

    private readonly int _pageSize;
    private readonly ulong _descriptors;
    private readonly ulong[] _dumped;

    // How many frames are in the dump before each eighth word of the bitmap.
    private readonly ulong[] _ranks;

    private KdumpBlocks(ImageBytes image, int pageSize, ulong descriptors, ulong[] dumped, ulong[] ranks, uint compression)
        : base(pageSize)
    {
        Image = image;
        _pageSize = pageSize;
        _descriptors = descriptors;
        _dumped = dumped;
        _ranks = ranks;
        HasChecksums = (compression & Zlib) != 0;
    }

    private ImageBytes Image { get; }

    public static ReadOnlySpan<byte> Magic => "KDUMP   "u8;

    /// <summary>Whether its pages have checksums, as those of zlib.</summary>
    public bool HasChecksums { get; }

    /// <summary>The bytes of memory that are not in the dump, and read as zeros.</summary>
    public ulong Omitted { get; private init; }

    /// <summary>Reads the headers and the bitmaps.</summary>
    /// <param name="image">The file.</param>
    /// <param name="extents">The ranges of memory.</param>
    /// <exception cref="GuestMemoryException">InvalidImage; ImageUnsupported: another version, another compression, a part of a dump.</exception>
    public static KdumpBlocks Open(ImageBytes image, out List<ImageExtent> extents)
    {
        var path = image.Path;
        var header = new byte[MinPage];
        image.ReadExact(0, header);
        if (!header.AsSpan().StartsWith(Magic)) throw MemoryImage.Invalid(path, "it does not begin as a dump of kdump does");
        var version = Number(8);
        if (version is 0 or > NewestVersion) throw MemoryImage.Unsupported(path, $"a dump of kdump of version {version}");
        // The time of a 32-bit writer is shorter by 12 bytes.
        var wide = IsWide(header.AsSpan(12 + (4 * UtsNameField), UtsNameField));
        var fields = wide ? 424 : 412;
        var (status, pageSize, secondBlocks, bitmapBlocks) = (Number(fields), Number(fields + 4), Number(fields + 8), Number(fields + 12));
        ulong frames = Number(fields + 16);
        if ((status & Lzo) != 0) throw MemoryImage.Unsupported(path, "a dump of kdump that is compressed with LZO; zlib and Snappy are read");
        if ((status & Zstd) != 0) throw MemoryImage.Unsupported(path, "a dump of kdump that is compressed with Zstandard; zlib and Snappy are read");
        if (pageSize is < MinPage or > MaxPage || !BitOperations.IsPow2(pageSize)) throw MemoryImage.Invalid(path, $"its pages cannot have {pageSize} bytes");
        var second = new byte[104];
        image.ReadExact(pageSize, second);
        if (version >= 2 && BinaryPrimitives.ReadUInt32LittleEndian(second.AsSpan(wide ? 12 : 8)) != 0) throw MemoryImage.Unsupported(path, "one part of a dump that was split ('makedumpfile --reassemble' joins them)");
        if (version >= 6 && BinaryPrimitives.ReadUInt64LittleEndian(second.AsSpan(wide ? 96 : 72)) is var all and not 0) frames = all;

        var bitmaps = (1 + (ulong)secondBlocks) * pageSize;
        var bitmapSize = (ulong)bitmapBlocks * pageSize / 2;
        var bytes = (frames + 7) / 8;
        if (secondBlocks == 0 || frames == 0 || frames > ImageMap.AddressLimit / pageSize || bytes > bitmapSize) throw MemoryImage.Invalid(path, $"its bitmaps of {bitmapBlocks} blocks are not of {frames} frames");
        if (bitmaps > image.Length || 2 * bitmapSize > image.Length - bitmaps || bytes > image.FileLength) throw MemoryImage.Invalid(path, "its bitmaps are not in the file");
        if (bytes > MaxBitmap) throw MemoryImage.Unsupported(path, $"a dump of kdump of {frames} frames");
        var memory = ReadBitmap(image, bitmaps, frames);
        var dumped = ReadBitmap(image, bitmaps + bitmapSize, frames);
        var (ranks, count) = Rank(dumped);
        var descriptors = bitmaps + (2 * bitmapSize);
        if (count * DescriptorSize > image.Length - descriptors) throw MemoryImage.Invalid(path, $"the descriptors of its {count} pages are not in the file; it may not have been completed");
        ulong omitted = 0;
        for (var i = 0; i < memory.Length; i++)
        {
            omitted += (ulong)BitOperations.PopCount(memory[i] & ~dumped[i]);
            memory[i] |= dumped[i];
        }

        extents = Runs(memory, frames, pageSize, path);
        return new KdumpBlocks(image, (int)pageSize, descriptors, dumped, ranks, status) { Omitted = omitted * pageSize };

        uint Number(int at) => BinaryPrimitives.ReadUInt32LittleEndian(header.AsSpan(at));
    }

    public override long Find(ulong position, out ulong start, out int size)
    {
        size = _pageSize;
        var frame = position / (ulong)_pageSize;
        start = frame * (ulong)_pageSize;
        return (long)frame;
    }

    protected override int TryUnpack(long number, Span<byte> target)
    {
        if ((_dumped[number >> 6] >> (int)(number & 63) & 1) == 0)
        {
            target.Clear();
            return 0;
        }

        Span<byte> descriptor = stackalloc byte[DescriptorSize];
        if (Image.TryRead(_descriptors + (RankOf(number) * DescriptorSize), descriptor, out var error) < DescriptorSize) return error;
        var offset = BinaryPrimitives.ReadUInt64LittleEndian(descriptor);
        var size = BinaryPrimitives.ReadUInt32LittleEndian(descriptor[8..]);
        var flags = BinaryPrimitives.ReadUInt32LittleEndian(descriptor[12..]);
        // What does not become shorter is not compressed.
        if (size == 0 || size > _pageSize || (flags == 0 && size != _pageSize)) return Errno.EBADMSG;
        if (flags == 0) return Image.TryRead(offset, target, out error) < target.Length ? error : 0;
        var rented = ArrayPool<byte>.Shared.Rent((int)size);
        try
        {
            var packed = rented.AsSpan(0, (int)size);
            if (Image.TryRead(offset, packed, out error) < packed.Length) return error;
            var isWhole = flags switch
            {
                Zlib => ChunkCodec.TryUnpack(ChunkCompression.ZLib, packed, target),
                Snappy => SnappyCodec.TryUnpack(packed, target),
                _ => false,
            };
            return isWhole ? 0 : Errno.EBADMSG;
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(rented);
        }
    }

    /// <summary>Whether the writer's numbers had 64 bits, by the machine of its utsname.</summary>
    private static bool IsWide(ReadOnlySpan<byte> machine) => !(machine is [(byte)'i', _, (byte)'8', (byte)'6', 0, ..] || machine.StartsWith("arm"u8));

    private static ulong[] ReadBitmap(ImageBytes image, ulong at, ulong frames)
    {
        var words = new ulong[(frames + 63) / 64];
        image.ReadExact(at, MemoryMarshal.AsBytes(words.AsSpan())[..(int)((frames + 7) / 8)]);
        // Behind the last frame stands what may.
        if ((frames & 63) != 0) words[^1] &= (1UL << (int)(frames & 63)) - 1;
        return words;
    }

    private static (ulong[] Ranks, ulong Count) Rank(ulong[] words)
    {
        var ranks = new ulong[(words.Length + WordsPerRank - 1) / WordsPerRank];
        ulong count = 0;
        for (var i = 0; i < words.Length; i++)
        {
            if (i % WordsPerRank == 0) ranks[i / WordsPerRank] = count;
            count += (ulong)BitOperations.PopCount(words[i]);
        }

        return (ranks, count);
    }

    private ulong RankOf(long frame)
    {
        var word = (int)(frame >> 6);
        var rank = _ranks[word / WordsPerRank];
        for (var i = word / WordsPerRank * WordsPerRank; i < word; i++) rank += (ulong)BitOperations.PopCount(_dumped[i]);
        return rank + (ulong)BitOperations.PopCount(_dumped[word] & ((1UL << (int)(frame & 63)) - 1));
    }

    /// <summary>The ranges of frames whose bits are set.</summary>
    private static List<ImageExtent> Runs(ulong[] words, ulong frames, ulong pageSize, string path)
    {
        var runs = new List<ImageExtent>();
        for (ulong frame = 0; (frame = Next(frame, set: true)) < frames;)
        {
            var end = Next(frame, set: false);
            if (runs.Count == ImageMap.MaxRegions) throw MemoryImage.Invalid(path, $"it has more than {runs.Count} ranges of memory");
            runs.Add(new ImageExtent(frame * pageSize, (end - frame) * pageSize, 0, (end - frame) * pageSize));
            frame = end;
        }

        return runs;

        ulong Next(ulong from, bool set)
        {
            for (var at = from; at < frames; at = (at | 63) + 1)
            {
                var word = (set ? words[at >> 6] : ~words[at >> 6]) >> (int)(at & 63);
                if (word != 0) return Math.Min(at + (ulong)BitOperations.TrailingZeroCount(word), frames);
            }

            return frames;
        }
    }
}
