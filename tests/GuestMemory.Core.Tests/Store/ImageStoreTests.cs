using System.Security.Cryptography;
using GuestMemory.Core.Store;

namespace GuestMemory.Core.Tests;

public sealed class ImageStoreTests : IDisposable
{
    private readonly StoreFixture _store = new();

    public void Dispose() => _store.Dispose();

    [Theory]
    [InlineData(ImageCompression.None)]
    [InlineData(ImageCompression.LZ4)]
    [InlineData(ImageCompression.Zstd)]
    public async Task WhatWasPublishedComesBack(ImageCompression compression)
    {
        int[] chunks = [1, 0, 2, 1, 0, 3];
        var size = (6 * StoreFixture.Chunk) - 4096;
        var published = await _store.Publish(_store.Memory(chunks, size), compression: compression);
        Assert.Equal((1UL, true, (ulong)size, 6, 3), (published.Generation, published.IsLatest, published.Size, published.ChunkCount, published.UniqueCount));
        Assert.Equal(compression != ImageCompression.None, published.StoredSize < 3 * StoreFixture.Chunk * 3 / 4);
        Assert.Equal(StoreFixture.Content(chunks, size), await _store.Load());
        Assert.Equal([published with { UploadedSize = null, SharedCount = null }], await ToList(_store.Images.ListAsync()));
        var check = await _store.Images.TestAsync(await _store.Images.OpenAsync("web"));
        Assert.True(check.IsWhole);
        Assert.Equal(3, check.ChunkCount);
    }

    [Fact]
    public async Task RegionsKeepTheirAddresses()
    {
        int[] chunks = [1, 2, 3, 4];
        var size = 4 * StoreFixture.Chunk;
        // A chunk has parts of two regions.
        await _store.Publish(_store.Memory(chunks, size, (0x1000, StoreFixture.Chunk + 4096), (0x1_0000_0000, (3 * StoreFixture.Chunk) - 4096)));
        var manifest = await _store.Images.OpenAsync("web");
        Assert.Equal([new ImageRegion(0x1000, StoreFixture.Chunk + 4096), new ImageRegion(0x1_0000_0000, (3 * StoreFixture.Chunk) - 4096)], manifest.Regions);
        Assert.Equal(StoreFixture.Content(chunks, size), await _store.Load());
    }

    [Fact]
    public async Task AGenerationSendsOnlyWhatIsNew()
    {
        var first = await _store.Publish(_store.Memory([.. Enumerable.Range(1, 100)]));
        var second = await _store.Publish(_store.Memory([.. Enumerable.Range(1, 98), 500, 501]));
        Assert.Equal((2UL, 98), (second.Generation, second.SharedCount));
        Assert.InRange(second.UploadedSize!.Value, 1UL, first.UploadedSize!.Value * 4 / 100);
        // Another name has them too.
        var other = await _store.Publish(_store.Memory([.. Enumerable.Range(1, 98), 500, 501]), "db");
        Assert.Equal((1UL, 0UL, 100), (other.Generation, other.UploadedSize, other.SharedCount));
        Assert.Equal(first.Digest, (await _store.Images.OpenAsync("web", 2)).Parent.ToString());
        Assert.Equal(StoreFixture.Content([.. Enumerable.Range(1, 100)], 100 * StoreFixture.Chunk), await _store.Load("web", 1));
        Assert.Equal(StoreFixture.Content([.. Enumerable.Range(1, 98), 500, 501], 100 * StoreFixture.Chunk), await _store.Load("db"));
        Assert.Equal("db@1 web@1 web@2", string.Join(' ', (await ToList(_store.Images.ListAsync(allGenerations: true))).Select(static image => $"{image.Name}@{image.Generation}")));
        Assert.Equal("db@1 web@2", string.Join(' ', (await ToList(_store.Images.ListAsync())).Select(static image => $"{image.Name}@{image.Generation}")));
    }

    [Fact]
    public async Task AnUploadThatWasEndedGoesOn()
    {
        var memory = _store.Memory([.. Enumerable.Range(1, 2000)]);
        using var stop = new CancellationTokenSource();
        var progress = new Reporter(done =>
        {
            if (done <= memory.Size * 3 / 4) return;
            Host.Until(() => _store.Packs().Length > 0);
            stop.Cancel();
        });
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => _store.Images.PublishAsync(memory, "web", new PublishOptions { ChunkSize = StoreFixture.Chunk, Progress = progress }, stop.Token));
        Assert.Empty(await ToList(_store.Images.ListAsync(allGenerations: true)));
        Assert.Empty(Directory.GetFiles(Path.Combine(_store.Root, "uploads")));
        var before = _store.Packs().Sum(static path => new FileInfo(path).Length);
        Assert.NotEqual(0, before);
        var published = await _store.Publish(memory);
        Assert.Equal((ulong)(_store.Packs().Sum(static path => new FileInfo(path).Length) - before), published.UploadedSize);
        Assert.Equal(StoreFixture.Content([.. Enumerable.Range(1, 2000)], 2000 * StoreFixture.Chunk), await _store.Load());
    }

    [Fact]
    public async Task WhatCannotBeAnImageIsRefusedBeforeAnythingIsUploaded()
    {
        using var key = ECDsa.Create(ECCurve.CreateFromFriendlyName("secp256k1"));
        var memory = _store.Memory(1);
        foreach (var (options, error) in new (PublishOptions, GuestMemoryError)[]
        {
            (new PublishOptions { ChunkSize = 5000 }, GuestMemoryError.ValueNotSupported), (new PublishOptions { SigningKey = key }, GuestMemoryError.ValueNotSupported),
            (new PublishOptions { Record = new byte[100] }, GuestMemoryError.InvalidRecord),
        })
        {
            Assert.Equal(error, (await Assert.ThrowsAsync<GuestMemoryException>(() => _store.Images.PublishAsync(memory, "web", options))).Error);
        }

        // More chunks than a manifest can name; nothing of the memory is read for that.
        using var large = new GuestRegionMmap(new MmapRegionBuilder(64UL << 30).WithFlags(MapFlags.Private | MapFlags.Anonymous | MapFlags.NoReserve).Build(), new GuestAddress(0), "large");
        Assert.Equal(GuestMemoryError.ValueNotSupported, (await Assert.ThrowsAsync<GuestMemoryException>(
            () => _store.Images.PublishAsync(GuestMemoryMmap.FromRegions([large]), "web", new PublishOptions { ChunkSize = 4096 }))).Error);
        Assert.False(Directory.Exists(_store.Root));
    }

    [Fact]
    public async Task ADamagedManifestHidesNoOtherImage()
    {
        foreach (var name in new[] { "a", "b", "c" }) await _store.Publish(_store.Memory(1), name);
        await File.WriteAllTextAsync(Path.Combine(_store.Root, "images", "b", "0000000001.gmi"), "x");
        var failed = new List<GuestMemoryException>();
        Assert.Equal("a c", string.Join(' ', (await ToList(_store.Images.ListAsync(failed: failed.Add))).Select(static image => image.Name)));
        Assert.Equal(GuestMemoryError.InvalidImage, Assert.Single(failed).Error);
    }

    [Fact]
    public async Task ANameStandsForNothingThatIsNotThere()
    {
        for (var i = 1; i <= 3; i++) await _store.Publish(_store.Memory(i));
        // As two removals at once may leave it.
        File.Delete(Path.Combine(_store.Root, "images", "web", "0000000002.gmi"));
        await File.WriteAllTextAsync(Path.Combine(_store.Root, "images", "web", "latest"), "2 3\n");
        await _store.Images.RemoveAsync("web", 3);
        Assert.Equal(StoreFixture.Content([1], StoreFixture.Chunk), await _store.Load());
    }

    [Fact]
    public async Task OnlyOneOfManyMakesAnObject()
    {
        for (var round = 0; round < 50; round++)
        {
            var key = $"images/web/{round}";
            var made = await Task.WhenAll(Enumerable.Range(0, 4).Select(i => Task.Run(async () => await _store.Images.Objects.TryCreateAsync(key, new[] { (byte)i }))));
            var one = Array.IndexOf(made, true);
            Assert.Equal(1, made.Count(static each => each));
            Assert.Equal([(byte)one], (await _store.Images.Objects.TryReadAsync(key, 10))!.Content);
        }
    }

    [Fact]
    public async Task ManyPublishAtOnce()
    {
        var all = await Task.WhenAll(Enumerable.Range(0, 8).Select(i => _store.Publish(_store.Memory(i + 1, 100, 101))));
        Assert.Equal(Enumerable.Range(1, 8).Select(static i => (ulong)i), all.Select(static image => image.Generation).Order());
        for (var i = 0; i < 8; i++) Assert.Equal(StoreFixture.Content([i + 1, 100, 101], 3 * StoreFixture.Chunk), await _store.Load("web", all[i].Generation));
        Assert.Equal(8UL, (await _store.Images.OpenAsync("web")).Generation);
    }

    [Fact]
    public async Task AFlippedBitIsFound()
    {
        await _store.Publish(_store.Memory(1, 2, 3));
        var pack = Assert.Single(_store.Packs());
        var whole = await File.ReadAllBytesAsync(pack);
        var manifest = await _store.Images.OpenAsync("web");
        for (var i = 0; i < 3; i++)
        {
            var bytes = (byte[])whole.Clone();
            bytes[manifest.Offsets[i] + (manifest.StoredSizes[i] / 2)] ^= 4;
            await File.WriteAllBytesAsync(pack, bytes);
            var check = await _store.Images.TestAsync(manifest);
            Assert.Contains($"at {manifest.Offsets[i]} in packs/", Assert.Single(check.Errors), StringComparison.Ordinal);
            Assert.Equal(GuestMemoryError.InvalidImage, (await Assert.ThrowsAsync<GuestMemoryException>(() => _store.Load())).Error);
        }

        await File.WriteAllBytesAsync(pack, whole[..^100]);
        Assert.True((await _store.Images.TestAsync(manifest)).IsWhole);
        await File.WriteAllBytesAsync(pack, whole[..((int)manifest.Offsets[1] + 10)]);
        Assert.Equal(3, (await _store.Images.TestAsync(manifest)).Errors.Count);
        File.Delete(pack);
        Assert.Equal(GuestMemoryError.ObjectNotFound, (await Assert.ThrowsAsync<GuestMemoryException>(() => _store.Load())).Error);
    }

    [Fact]
    public async Task AManifestIsReadWholeOrNotAtAll()
    {
        using var key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
        await _store.Images.PublishAsync(_store.Memory(1, 0, 2), "web", new PublishOptions { ChunkSize = StoreFixture.Chunk, SigningKey = key, Record = "GMTOUCH1 and so on"u8.ToArray() });
        var path = Path.Combine(_store.Root, "images", "web", "0000000001.gmi");
        var whole = await File.ReadAllBytesAsync(path);
        Assert.Equal("GMTOUCH1 and so on"u8.ToArray(), (await _store.Images.OpenAsync("web")).Record);
        for (var at = 0; at < whole.Length; at++)
        {
            var bytes = (byte[])whole.Clone();
            bytes[at] ^= 1;
            // A signature is looked at when a key is given.
            if (at >= whole.Length - 96) Assert.False(ImageManifest.Read(bytes, "it").IsSignedBy([key]));
            else Assert.Equal(GuestMemoryError.InvalidImage, Assert.Throws<GuestMemoryException>(() => ImageManifest.Read(bytes, "it")).Error);
            if (at != whole.Length - 104) Assert.Equal(GuestMemoryError.InvalidImage, Assert.Throws<GuestMemoryException>(() => ImageManifest.Read(whole[..at], "it")).Error);
        }

        // Without its signature it is a manifest that nobody has signed.
        Assert.Null(ImageManifest.Read(whole[..^104], "it").SigningKey);
    }

    [Fact]
    public async Task OnlyATrustedKeyIsTrusted()
    {
        using var key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
        using var other = ECDsa.Create(ECCurve.NamedCurves.nistP256);
        using var large = ECDsa.Create(ECCurve.NamedCurves.nistP384);
        await _store.Publish(_store.Memory(1));
        await _store.Images.PublishAsync(_store.Memory(2), "web", new PublishOptions { ChunkSize = StoreFixture.Chunk, SigningKey = key });
        Assert.NotNull((await _store.Images.OpenAsync("web", trustedKeys: [other, key])).SigningKey);
        Assert.Equal(GuestMemoryError.ImageUntrusted, (await Assert.ThrowsAsync<GuestMemoryException>(() => _store.Images.OpenAsync("web", trustedKeys: [other]))).Error);
        Assert.Equal(GuestMemoryError.ImageUntrusted, (await Assert.ThrowsAsync<GuestMemoryException>(() => _store.Images.OpenAsync("web", 1, [key]))).Error);
        Assert.Equal(GuestMemoryError.ValueNotSupported, (await Assert.ThrowsAsync<GuestMemoryException>(
            () => _store.Images.PublishAsync(_store.Memory(2), "web", new PublishOptions { SigningKey = large }))).Error);
        // The manifest of another image that is signed, too, is not this one's.
        Directory.CreateDirectory(Path.Combine(_store.Root, "images", "db"));
        File.Copy(Path.Combine(_store.Root, "images", "web", "0000000002.gmi"), Path.Combine(_store.Root, "images", "db", "0000000002.gmi"));
        Assert.Equal(GuestMemoryError.InvalidImage, (await Assert.ThrowsAsync<GuestMemoryException>(() => _store.Images.OpenAsync("db", 2, [key]))).Error);
    }

    [Fact]
    public async Task WhatIsRemovedIsNoMore()
    {
        for (var i = 1; i <= 3; i++) await _store.Publish(_store.Memory(i));
        await _store.Images.RemoveAsync("web", 3);
        Assert.Equal(StoreFixture.Content([2], StoreFixture.Chunk), await _store.Load());
        // Its number is not another one's.
        Assert.Equal(4UL, (await _store.Publish(_store.Memory(4))).Generation);
        await _store.Images.RemoveAsync("web");
        Assert.Empty(await ToList(_store.Images.ListAsync(allGenerations: true)));
        Assert.Equal(GuestMemoryError.ImageNotFound, (await Assert.ThrowsAsync<GuestMemoryException>(() => _store.Images.OpenAsync("web"))).Error);
        Assert.Equal(GuestMemoryError.ImageNotFound, (await Assert.ThrowsAsync<GuestMemoryException>(() => _store.Images.RemoveAsync("web"))).Error);
        Assert.Equal(5UL, (await _store.Publish(_store.Memory(1))).Generation);
    }

    [Fact]
    public async Task AGenerationThatIsNotAnnouncedYetIsNotTheLatest()
    {
        for (var i = 1; i <= 2; i++) await _store.Publish(_store.Memory(i));
        await File.WriteAllTextAsync(Path.Combine(_store.Root, "images", "web", "latest"), "1 1\n");
        await _store.Images.RemoveAsync("web", 1);
        Assert.Equal(GuestMemoryError.ImageNotFound, (await Assert.ThrowsAsync<GuestMemoryException>(() => _store.Images.OpenAsync("web"))).Error);
        await _store.Images.SetLatestAsync("web", 2, CancellationToken.None);
        Assert.Equal(StoreFixture.Content([2], StoreFixture.Chunk), await _store.Load());
    }

    [Theory]
    [InlineData("/srv/store/web", "/srv/store", "web", null)]
    [InlineData("/srv/store/web@7", "/srv/store", "web", 7UL)]
    [InlineData("/web", "/", "web", null)]
    [InlineData("s3://bucket/prefix/a.b-c_1", "s3://bucket/prefix", "a.b-c_1", null)]
    public void LocationsAreRead(string text, string store, string name, ulong? generation)
    {
        Assert.Equal(new StoreLocation(store, name, generation), StoreLocation.Parse(text));
        Assert.Equal(text, StoreLocation.Parse(text).ToString());
    }

    [Theory]
    [InlineData("web")]
    [InlineData("/srv/")]
    [InlineData("/srv/web@0")]
    [InlineData("/srv/web@x")]
    [InlineData("/srv/..")]
    [InlineData("/srv/web\n")]
    public void OtherTextsAreNoLocations(string text) => Assert.Equal(GuestMemoryError.ValueNotSupported, Assert.Throws<GuestMemoryException>(() => StoreLocation.Parse(text)).Error);

    [Fact]
    public async Task AStoreIsItsOwnersUnlessItIsOpened()
    {
        await _store.Publish(_store.Memory(1));
        Assert.All(_store.Packs(), static path => Assert.Equal(0b110_000_000u, Mode(path)));
        Assert.Equal(0b111_000_000u, Mode(_store.Root));
        Assert.Equal(0, FileStatus.TryChangeMode(_store.Root, 0b111_101_000));
        var before = _store.Packs();
        await _store.Publish(_store.Memory(2));
        var pack = _store.Packs().Except(before, StringComparer.Ordinal).Single();
        Assert.Equal(0b110_100_000u, Mode(pack));

        static uint Mode(string path)
        {
            Assert.Equal(0, FileStatus.TryGet(path, out var status));
            return status.stx_mode & 0xfffu;
        }
    }

    private static async Task<List<StoredImage>> ToList(IAsyncEnumerable<StoredImage> images)
    {
        var all = new List<StoredImage>();
        await foreach (var image in images) all.Add(image);
        return all;
    }

    private sealed class Reporter(Action<ulong> report) : IProgress<ulong>
    {
        public void Report(ulong value) => report(value);
    }
}
