using System.Buffers.Binary;
using System.IO.Compression;
using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>Images of memory as other programs write them, put together byte by byte from the formats' descriptions.</summary>
internal static class ImageFiles
{
    public const int Page = 4096;

    public enum Packing
    {
        None = 0,
        Zlib = 1,
        Snappy = 4,
    }

    /// <summary>Pages that are all different: even ones of one word, odd ones of bytes that hardly compress.</summary>
    public static byte[] Content(int pages, int first = 0)
    {
        var bytes = new byte[pages * Page];
        for (var i = 0; i < pages; i++)
        {
            var page = bytes.AsSpan(i * Page, Page);
            if (i % 2 == 0) TestFolder.Fill(page, first + i);
            else new Random(first + i).NextBytes(page);
        }

        return bytes;
    }

    public static byte[] Lime(params (ulong Address, byte[] Bytes)[] ranges)
    {
        var file = new MemoryStream();
        foreach (var (address, bytes) in ranges)
        {
            file.Write(LimeHeader("EMiL", 1, address, address + (ulong)bytes.Length - 1));
            file.Write(bytes);
        }

        return file.ToArray();
    }

    public static byte[] LimeHeader(string magic, uint version, ulong first, ulong last)
    {
        var header = new byte[32];
        Encoding.ASCII.GetBytes(magic).CopyTo(header, 0);
        Put(header, 4, version);
        Put(header, 8, first);
        Put(header, 16, last);
        return header;
    }

    public static byte[] Avml(params (ulong Address, byte[] Bytes)[] ranges)
    {
        var file = new MemoryStream();
        foreach (var (address, bytes) in ranges)
        {
            file.Write(LimeHeader("AVML", 2, address, address + (ulong)bytes.Length - 1));
            var begin = file.Position;
            file.Write([0xff, 6, 0, 0, .. "sNaPpY"u8]);
            for (var at = 0; at < bytes.Length; at += 1 << 16)
            {
                var part = bytes.AsSpan(at, Math.Min(1 << 16, bytes.Length - at));
                // Padding and a chunk that may be skipped, which encoders of other programs may write.
                if (at == 0) file.Write([0xfe, 3, 0, 0, 1, 2, 3, 0x80, 1, 0, 0, 9]);
                var packed = Snappy(part);
                var isShorter = packed.Length < part.Length;
                var stored = isShorter ? packed : part.ToArray();
                var length = stored.Length + 4;
                file.Write([isShorter ? (byte)0 : (byte)1, (byte)length, (byte)(length >> 8), (byte)(length >> 16)]);
                var crc = Crc32C(part);
                var masked = new byte[4];
                Put(masked, 0, unchecked(((crc >> 15) | (crc << 17)) + 0xa282ead8));
                file.Write(masked);
                file.Write(stored);
            }

            var count = new byte[8];
            Put(count, 0, (ulong)(file.Position - begin));
            file.Write(count);
        }

        return file.ToArray();
    }

    public static byte[] Elf(bool wide, int gap, params (ulong Address, byte[] Bytes, ulong Size)[] segments)
    {
        var (headerSize, entrySize) = wide ? (64, 56) : (52, 32);
        var header = new byte[headerSize];
        new byte[] { 0x7f, (byte)'E', (byte)'L', (byte)'F', wide ? (byte)2 : (byte)1, 1, 1 }.CopyTo(header, 0);
        Put(header, 16, (ushort)4);
        Put(header, 18, wide ? (ushort)62 : (ushort)3);
        Put(header, 20, 1u);
        if (wide) Put(header, 32, (ulong)headerSize);
        else Put(header, 28, (uint)headerSize);
        Put(header, wide ? 54 : 42, (ushort)entrySize);
        Put(header, wide ? 56 : 44, (ushort)(segments.Length + 1));
        var file = new MemoryStream();
        file.Write(header);
        // A note first, as in every core file.
        var note = new byte[entrySize];
        Put(note, 0, 4u);
        file.Write(note);
        var at = headerSize + ((segments.Length + 1) * entrySize) + gap;
        foreach (var (address, bytes, size) in segments)
        {
            var entry = new byte[entrySize];
            Put(entry, 0, 1u);
            if (wide)
            {
                Put(entry, 8, (ulong)at);
                Put(entry, 24, address);
                Put(entry, 32, (ulong)bytes.Length);
                Put(entry, 40, size);
            }
            else
            {
                Put(entry, 4, (uint)at);
                Put(entry, 12, (uint)address);
                Put(entry, 16, (uint)bytes.Length);
                Put(entry, 20, (uint)size);
            }

            file.Write(entry);
            at += bytes.Length;
        }

        file.Write(new byte[gap]);
        foreach (var (_, bytes, _) in segments) file.Write(bytes);
        return file.ToArray();
    }

    /// <summary>A dump of kdump of frames from 0 to the last one given. Frames without bytes are memory that was left out.</summary>
    public static byte[] Kdump(IReadOnlyDictionary<int, byte[]?> frames, Packing packing, bool wide = true)
    {
        var count = frames.Keys.Max() + 1;
        var bitmapBlocks = ((count + 7) / 8 + Page - 1) / Page;
        var header = new byte[Page];
        "KDUMP   "u8.CopyTo(header);
        Put(header, 8, 6u);
        Encoding.ASCII.GetBytes(wide ? "x86_64" : "i686").CopyTo(header, 12 + (4 * 65));
        var fields = wide ? 424 : 412;
        Put(header, fields, (uint)packing);
        Put(header, fields + 4, (uint)Page);
        Put(header, fields + 8, 1u);
        Put(header, fields + 12, (uint)(2 * bitmapBlocks));
        Put(header, fields + 16, (uint)count);
        var second = new byte[Page];
        Put(second, wide ? 96 : 72, (ulong)count);
        var memory = new byte[bitmapBlocks * Page];
        var dumped = new byte[bitmapBlocks * Page];
        var descriptors = new MemoryStream();
        var data = new MemoryStream();
        var dataAt = (2 + (2 * bitmapBlocks)) * Page + (frames.Values.Count(bytes => bytes is not null) * 24);
        foreach (var (frame, bytes) in frames.OrderBy(frame => frame.Key))
        {
            memory[frame / 8] |= (byte)(1 << (frame % 8));
            if (bytes is null) continue;
            dumped[frame / 8] |= (byte)(1 << (frame % 8));
            var packed = packing switch
            {
                Packing.Zlib => Zlib(bytes),
                Packing.Snappy => Snappy(bytes),
                _ => bytes,
            };
            var isShorter = packed.Length < bytes.Length;
            var descriptor = new byte[24];
            Put(descriptor, 0, (ulong)(dataAt + data.Position));
            Put(descriptor, 8, (uint)(isShorter ? packed.Length : bytes.Length));
            Put(descriptor, 12, isShorter ? (uint)packing : 0);
            descriptors.Write(descriptor);
            data.Write(isShorter ? packed : bytes);
        }

        return [.. header, .. second, .. memory, .. dumped, .. descriptors.ToArray(), .. data.ToArray()];
    }

    /// <summary>The flattened form of a file: its records in pieces from the end to the begin, behind one with wrong bytes that a later one overwrites.</summary>
    public static byte[] Flatten(byte[] file, int piece)
    {
        var flat = new MemoryStream();
        var header = new byte[Page];
        "makedumpfile"u8.CopyTo(header);
        BinaryPrimitives.WriteInt64BigEndian(header.AsSpan(16), 1);
        BinaryPrimitives.WriteInt64BigEndian(header.AsSpan(24), 1);
        flat.Write(header);
        var wrong = new byte[Math.Min(piece + 100, file.Length)];
        wrong.AsSpan().Fill(0xee);
        Record(0, wrong);
        for (var at = (file.Length - 1) / piece * piece; at >= 0; at -= piece) Record(at, file.AsSpan(at, Math.Min(piece, file.Length - at)));
        Record(-1, []);
        return flat.ToArray();

        void Record(long offset, ReadOnlySpan<byte> bytes)
        {
            var begin = new byte[16];
            BinaryPrimitives.WriteInt64BigEndian(begin, offset);
            BinaryPrimitives.WriteInt64BigEndian(begin.AsSpan(8), offset < 0 ? -1 : bytes.Length);
            flat.Write(begin);
            flat.Write(bytes);
        }
    }

    /// <summary>A block of Snappy: runs of a word as copies of it, the rest as literals.</summary>
    public static byte[] Snappy(ReadOnlySpan<byte> bytes)
    {
        var packed = new MemoryStream();
        for (var length = bytes.Length; ; length >>= 7)
        {
            packed.WriteByte((byte)(length < 0x80 ? length : (length & 0x7f) | 0x80));
            if (length < 0x80) break;
        }

        for (var at = 0; at < bytes.Length;)
        {
            var run = 0;
            while (at >= 8 && at + run < bytes.Length && run < 64 && bytes[at + run] == bytes[at + run - 8]) run++;
            if (run >= 4)
            {
                // A copy of up to 64 bytes from an offset of two bytes.
                packed.Write([(byte)(((run - 1) << 2) | 2), 8, 0]);
                at += run;
                continue;
            }

            var literal = Math.Min(8, bytes.Length - at);
            packed.WriteByte((byte)((literal - 1) << 2));
            packed.Write(bytes.Slice(at, literal));
            at += literal;
        }

        return packed.ToArray();
    }

    public static void Put(Span<byte> bytes, int at, ushort value) => BinaryPrimitives.WriteUInt16LittleEndian(bytes[at..], value);

    public static void Put(Span<byte> bytes, int at, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(bytes[at..], value);

    public static void Put(Span<byte> bytes, int at, ulong value) => BinaryPrimitives.WriteUInt64LittleEndian(bytes[at..], value);

    private static byte[] Zlib(byte[] bytes)
    {
        var packed = new MemoryStream();
        using (var stream = new ZLibStream(packed, CompressionLevel.Optimal, leaveOpen: true)) stream.Write(bytes);
        return packed.ToArray();
    }

    private static uint Crc32C(ReadOnlySpan<byte> bytes)
    {
        var crc = uint.MaxValue;
        foreach (var value in bytes)
        {
            crc ^= value;
            for (var bit = 0; bit < 8; bit++) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82f63b78 : crc >> 1;
        }

        return ~crc;
    }
}
