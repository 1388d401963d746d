using System.Buffers.Binary;

namespace GuestMemory.Core.Tests;

/// <summary>AVML images, read as AVML's source writes them, and Snappy's format descriptions have them.</summary>
public sealed class AvmlWriterTests : IDisposable
{
    private const int MiB = 1 << 20;
    private readonly TestFolder _folder = new();
    private readonly GuestMemoryMmap _memory = GuestMemoryMmap.FromRanges([(new GuestAddress(0x1000), 0x3000UL), (new GuestAddress(0x40000000), 70UL * MiB)]);

    public void Dispose()
    {
        foreach (var region in _memory.Regions) region.Dispose();
        _folder.Dispose();
    }

    [Fact]
    public void BlocksAreFramedAndThoseOfZerosAreLeftOut()
    {
        var random = new byte[100_000];
        new Random(7).NextBytes(random);
        _memory.Write(new GuestAddress(0x1ff0), "a text, a text, a text"u8.ToArray());
        // In the middle of the second block of 16 MiB, and over the border of the second and the third.
        _memory.Write(new GuestAddress(0x40000000 + (20 * MiB) + 17), random);
        _memory.Write(new GuestAddress(0x40000000 + (32 * MiB) - 50_000), random);
        var info = AvmlWriter.Write(_memory, _folder["avml"], overwrite: false);
        var blocks = Read(File.ReadAllBytes(_folder["avml"])).ToArray();
        // The fourth is zero; the first and the last are, too.
        Assert.Equal(
            [(0x1000UL, 0x3000), (0x40000000UL, 16 * MiB), (0x41000000UL, 16 * MiB), (0x42000000UL, 16 * MiB), (0x44000000UL, 6 * MiB)],
            blocks.Select(static block => (block.First, block.Content.Length)));
        foreach (var (first, content) in blocks)
        {
            var expected = new byte[content.Length];
            _memory.ReadExact(new GuestAddress(first), expected);
            Assert.True(expected.AsSpan().SequenceEqual(content), $"block 0x{first:x}");
        }

        Assert.Equal((ulong)new FileInfo(_folder["avml"]).Length, info.BytesWritten);
        // Of the random bytes 25 and 26 pages, and of the text two.
        Assert.Equal(53, info.PageCount);
    }

    [Fact]
    public void ARegionOfZerosHasItsAddressesInTheFile()
    {
        AvmlWriter.Write(_memory, _folder["avml"], overwrite: false);
        Assert.Equal([0x1000UL, 0x40000000UL, 0x44000000UL], Read(File.ReadAllBytes(_folder["avml"])).Select(static block => block.First));
    }

    private static IEnumerable<(ulong First, byte[] Content)> Read(byte[] file)
    {
        for (var at = 0; at < file.Length;)
        {
            Assert.Equal("AVML"u8.ToArray(), file[at..(at + 4)]);
            Assert.Equal(2u, BinaryPrimitives.ReadUInt32LittleEndian(file.AsSpan(at + 4)));
            var first = BinaryPrimitives.ReadUInt64LittleEndian(file.AsSpan(at + 8));
            var last = BinaryPrimitives.ReadUInt64LittleEndian(file.AsSpan(at + 16));
            Assert.Equal(0UL, BinaryPrimitives.ReadUInt64LittleEndian(file.AsSpan(at + 24)));
            var begin = at + 32;
            var content = ReadFrames(file, begin, (int)(last - first + 1), out var end);
            Assert.Equal((ulong)(end - begin), BinaryPrimitives.ReadUInt64LittleEndian(file.AsSpan(end)));
            yield return (first, content);
            at = end + 8;
        }
    }

    // Snappy's framing_format.txt.
    private static byte[] ReadFrames(byte[] file, int at, int size, out int end)
    {
        var content = new byte[size];
        var filled = 0;
        Assert.Equal([0xff, 6, 0, 0, .. "sNaPpY"u8], file[at..(at + 10)]);
        at += 10;
        while (filled < size)
        {
            var length = file[at + 1] | (file[at + 2] << 8) | (file[at + 3] << 16);
            var data = file.AsSpan(at + 8, length - 4);
            var part = file[at] == 0 ? Decompress(data) : data.ToArray();
            Assert.InRange(file[at], 0, 1);
            Assert.InRange(part.Length, 1, 65536);
            var crc = Crc32C(part);
            Assert.Equal(unchecked(((crc >> 15) | (crc << 17)) + 0xa282ead8), BinaryPrimitives.ReadUInt32LittleEndian(file.AsSpan(at + 4)));
            part.CopyTo(content, filled);
            filled += part.Length;
            at += 4 + length;
        }

        end = at;
        return content;
    }

    // Snappy's format_description.txt.
    private static byte[] Decompress(ReadOnlySpan<byte> data)
    {
        int length = 0, at = 0;
        for (var shift = 0; ; shift += 7)
        {
            length |= (data[at] & 0x7f) << shift;
            if (data[at++] < 0x80) break;
        }

        var output = new byte[length];
        var filled = 0;
        while (at < data.Length)
        {
            var tag = data[at++];
            if ((tag & 3) == 0)
            {
                var count = tag >> 2;
                if (count >= 60)
                {
                    var bytes = count - 59;
                    count = 0;
                    for (var i = 0; i < bytes; i++) count |= data[at + i] << (8 * i);
                    at += bytes;
                }

                data.Slice(at, count + 1).CopyTo(output.AsSpan(filled));
                at += count + 1;
                filled += count + 1;
                continue;
            }

            int copied, offset;
            if ((tag & 3) == 1)
            {
                copied = ((tag >> 2) & 7) + 4;
                offset = ((tag >> 5) << 8) | data[at++];
            }
            else
            {
                copied = (tag >> 2) + 1;
                offset = (tag & 3) == 2 ? BinaryPrimitives.ReadUInt16LittleEndian(data[at..]) : BinaryPrimitives.ReadInt32LittleEndian(data[at..]);
                at += (tag & 3) == 2 ? 2 : 4;
            }

            for (var i = 0; i < copied; i++, filled++) output[filled] = output[filled - offset];
        }

        Assert.Equal(length, filled);
        return output;
    }

    private static uint Crc32C(ReadOnlySpan<byte> data)
    {
        var crc = uint.MaxValue;
        foreach (var value in data)
        {
            crc ^= value;
            for (var bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78 : 0);
        }

        return ~crc;
    }
}
