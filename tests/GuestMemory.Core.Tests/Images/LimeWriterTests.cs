using System.Buffers.Binary;

namespace GuestMemory.Core.Tests;

/// <summary>LiME images, read as LiME's documentation describes them.</summary>
public sealed class LimeWriterTests : IDisposable
{
    private readonly TestFolder _folder = new();
    private readonly GuestMemoryMmap _memory = GuestMemoryMmap.FromRanges([(new GuestAddress(0x1000), 0x3000UL), (new GuestAddress(0x4000), 0x1000UL), (new GuestAddress(0x100000000), 0x280000UL)]);

    public void Dispose()
    {
        foreach (var region in _memory.Regions) region.Dispose();
        _folder.Dispose();
    }

    [Fact]
    public void EachRegionStandsBehindItsAddresses()
    {
        _memory.Write(new GuestAddress(0x1234), [1, 2, 3]);
        _memory.Write(new GuestAddress(0x4000), Enumerable.Repeat((byte)7, 0x1000).ToArray());
        _memory.Write(new GuestAddress(0x10027ffff), [9]);
        var info = LimeWriter.Write(_memory, _folder["lime"], overwrite: false);
        var ranges = Read(File.ReadAllBytes(_folder["lime"])).ToArray();
        Assert.Equal([(0x1000UL, 0x3fffUL), (0x4000UL, 0x4fffUL), (0x100000000UL, 0x10027ffffUL)], ranges.Select(static range => (range.First, range.Last)));
        foreach (var (first, _, content) in ranges)
        {
            var expected = new byte[content.Length];
            _memory.ReadExact(new GuestAddress(first), expected);
            Assert.True(expected.AsSpan().SequenceEqual(content));
        }

        Assert.Equal((3L, 3 * 4096UL + 3 * 32), (info.PageCount, info.BytesWritten));
    }

    [Fact]
    public void PagesOfZerosAreHoles()
    {
        LimeWriter.Write(_memory, _folder["lime"], overwrite: false);
        using var file = File.OpenHandle(_folder["lime"]);
        Assert.Equal(3 * 32 + 0x284000, RandomAccess.GetLength(file));
        Assert.InRange(FileStatus.Get(file).stx_blocks * 512, 1UL, 3 * 4096UL);
    }

    private static IEnumerable<(ulong First, ulong Last, byte[] Content)> Read(byte[] file)
    {
        for (var at = 0; at < file.Length;)
        {
            Assert.Equal("EMiL"u8.ToArray(), file[at..(at + 4)]);
            Assert.Equal(1u, BinaryPrimitives.ReadUInt32LittleEndian(file.AsSpan(at + 4)));
            var first = BinaryPrimitives.ReadUInt64LittleEndian(file.AsSpan(at + 8));
            var last = BinaryPrimitives.ReadUInt64LittleEndian(file.AsSpan(at + 16));
            Assert.Equal(0UL, BinaryPrimitives.ReadUInt64LittleEndian(file.AsSpan(at + 24)));
            var end = at + 32 + (int)(last - first + 1);
            yield return (first, last, file[(at + 32)..end]);
            at = end;
        }
    }
}
