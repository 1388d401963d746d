namespace GuestMemory.Core.Tests;

/// <content>Images of chunks.</content>
public sealed partial class SourceTests
{
    [UffdTheory]
    [MemberData(nameof(Strategies))]
    public void ChunksAreUnpacked(UffdStrategy strategy)
    {
        WriteChunked();
        using var handler = Start(strategy);
        AssertMemory(handler, ChunkedPage);
    }

    [UffdFact]
    public void ADamagedChunkIsAnErrorOfItsPagesAlone()
    {
        WriteChunked();
        var bytes = File.ReadAllBytes(_folder["image"]);
        bytes[40] ^= 1;
        File.WriteAllBytes(_folder["image"], bytes);
        using var handler = Start(UffdStrategy.OnDemand);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        Assert.Equal(GuestMemoryError.PageNotAccessible, Assert.Throws<GuestMemoryException>(() => memory.ReadExact(new GuestAddress(0), new byte[8])).Error);
        memory.ReadExact(new GuestAddress(64 * 4096), new byte[8]);
        Host.Until(() => handler.Error is not null);
        Assert.Contains("EBADMSG", handler.Error, StringComparison.Ordinal);
    }

    [UffdFact]
    public void ChunksOfZLibAreUnpacked()
    {
        WriteChunked(ChunkCompression.ZLib);
        // The first chunk, as any program for zlib unpacks it.
        using (var file = File.OpenRead(_folder["image"]))
        {
            file.Position = 32;
            using var stream = new System.IO.Compression.ZLibStream(file, System.IO.Compression.CompressionMode.Decompress);
            var page = new byte[4096];
            var expected = new byte[4096];
            stream.ReadExactly(page);
            TestFolder.Fill(expected, 0);
            Assert.Equal(ChunkedPage(0) < 0 ? new byte[4096] : expected, page);
        }

        using var handler = Start(UffdStrategy.OnDemand);
        AssertMemory(handler, ChunkedPage);
    }

    /// <summary>Chunks whose sum is right and whose contents are not: too short, too long, and no zlib.</summary>
    [Fact]
    public void ZLibThatIsNotTheChunkIsRefused()
    {
        var chunk = new byte[8192];
        var packed = new byte[4096];
        Assert.True(ChunkCodec.TryPack(ChunkCompression.ZLib, chunk, packed, packed.Length, out var length));
        Assert.True(ChunkCodec.TryUnpack(ChunkCompression.ZLib, packed.AsSpan(0, length), chunk));
        Assert.False(ChunkCodec.TryUnpack(ChunkCompression.ZLib, packed.AsSpan(0, length), chunk.AsSpan(0, 8000)));
        Assert.False(ChunkCodec.TryUnpack(ChunkCompression.ZLib, packed.AsSpan(0, length), new byte[9000]));
        Assert.False(ChunkCodec.TryUnpack(ChunkCompression.ZLib, packed.AsSpan(1, length - 1), chunk));
        // It needs a dictionary that is not there.
        Assert.False(ChunkCodec.TryUnpack(ChunkCompression.ZLib, [0x78, 0x20, 0, 0, 0, 1, 2, 3, 4, 5], chunk));
        Assert.False(ChunkCodec.TryPack(ChunkCompression.ZLib, chunk, packed, 8, out _));
    }

    /// <summary>Every byte of header, index and footer, and every length: never anything but an error.</summary>
    [Fact]
    public void ImagesOfChunksThatAreNotWhole()
    {
        WriteChunked();
        var good = File.ReadAllBytes(_folder["image"]);
        var ends = 32 + ((Pages + 15) / 16 * 16);
        var wrong = 0;
        foreach (var at in Enumerable.Range(0, 32).Concat(Enumerable.Range(good.Length - ends, ends)))
        {
            // Nothing is said by the rest of the header.
            if (at is >= 24 and < 32) continue;
            var bad = (byte[])good.Clone();
            bad[at] ^= 0x41;
            wrong += Refused(bad);
        }

        Assert.Equal(24 + ends, wrong);
        for (var length = good.Length - 1; length >= 0; length -= 97) Assert.Equal(1, Refused(good[..length]));
        Assert.Equal(1, Refused([.. good, 0]));

        int Refused(byte[] bytes)
        {
            File.WriteAllBytes(_folder["bad"], bytes);
            try
            {
                using var file = ImageFile.Open(_folder["bad"]);
                if (!ChunkedImage.IsOne(file.Handle)) return 1;
                new ChunkedSource(file).Dispose();
                return 0;
            }
            catch (GuestMemoryException exception) when (exception.Error is GuestMemoryError.InvalidImage or GuestMemoryError.ImageUnreadable)
            {
                return 1;
            }
        }
    }
}
