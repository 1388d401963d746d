using System.Globalization;
using GuestMemory.Core.Store;

namespace GuestMemory.Core.Tests;

public sealed class ImageCollectorTests : IDisposable
{
    private readonly StoreFixture _store = new();

    public void Dispose() => _store.Dispose();

    [Fact]
    public async Task WhatNoImageHasGoesWithTheSecondCollection()
    {
        await _store.Publish(_store.Memory(1, 2));
        await _store.Publish(_store.Memory(2, 3));
        await _store.Images.RemoveAsync("web", 1);
        // The pack of the first has a chunk of the second.
        Assert.Equal((0, 0, 2), Counts(await _store.Images.CollectAsync()));
        await _store.Images.RemoveAsync("web");
        Assert.Equal((0, 2, 0), Counts(await _store.Images.CollectAsync()));
        Assert.Equal(2, _store.Packs().Length);
        Assert.Equal((2, 0, 0), Counts(await _store.Images.CollectAsync()));
        Assert.Empty(_store.Packs());
        Assert.Equal((0, 0, 0), Counts(await _store.Images.CollectAsync()));
        Assert.Empty(Left());
    }

    [Fact]
    public async Task AnUploadKeepsWhatItMayCountOn()
    {
        await _store.Publish(_store.Memory(1, 2));
        await using (await UploadLease.CreateAsync(_store.Images.Objects, CancellationToken.None))
        {
            await _store.Images.RemoveAsync("web");
            for (var i = 0; i < 3; i++) Assert.Equal((0, 1, 0), Counts(await _store.Images.CollectAsync()));
        }

        // One that came later does not know it.
        await using var later = await UploadLease.CreateAsync(_store.Images.Objects, CancellationToken.None);
        Assert.Equal((1, 0, 0), Counts(await _store.Images.CollectAsync()));
    }

    [Fact]
    public async Task TheLeaseOfADeadUploadEnds()
    {
        await _store.Publish(_store.Memory(1));
        await using var lease = await UploadLease.CreateAsync(_store.Images.Objects, CancellationToken.None);
        await _store.Images.RemoveAsync("web");
        Assert.Equal((0, 1, 0), Counts(await _store.Images.CollectAsync()));
        File.SetLastWriteTimeUtc(Path.Combine(_store.Root, "uploads", lease.Id), DateTime.UtcNow - UploadLease.Lifetime - TimeSpan.FromSeconds(5));
        Assert.Equal((1, 0, 0), Counts(await _store.Images.CollectAsync()));
        Assert.False(await lease.TryRenewAsync(CancellationToken.None));
        Assert.True(lease.Lost.IsCancellationRequested);
    }

    [Fact]
    public async Task WhatIsDoomedIsUploadedAgainUnderAnotherName()
    {
        await _store.Publish(_store.Memory(1, 2));
        await _store.Images.RemoveAsync("web");
        await _store.Images.CollectAsync();
        var again = await _store.Publish(_store.Memory(1, 2));
        Assert.Equal(0, again.SharedCount);
        Assert.Equal(2, _store.Packs().Length);
        Assert.Equal((1, 0, 1), Counts(await _store.Images.CollectAsync()));
        Assert.Equal(StoreFixture.Content([1, 2], 2 * StoreFixture.Chunk), await _store.Load());
    }

    [Fact]
    public async Task WhatAPendingManifestNamesStays()
    {
        await _store.Publish(_store.Memory(1));
        var manifest = Path.Combine(_store.Root, "images", "web", "0000000001.gmi");
        Directory.CreateDirectory(Path.Combine(_store.Root, "pending"));
        var pending = Path.Combine(_store.Root, "pending", "of-one-that-died");
        File.Copy(manifest, pending);
        await _store.Images.RemoveAsync("web");
        for (var i = 0; i < 3; i++) Assert.Equal((0, 0, 1), Counts(await _store.Images.CollectAsync()));
        File.SetLastWriteTimeUtc(pending, DateTime.UtcNow - TimeSpan.FromDays(2));
        Assert.Equal((0, 1, 0), Counts(await _store.Images.CollectAsync()));
        Assert.Equal((1, 0, 0), Counts(await _store.Images.CollectAsync()));
    }

    [Fact]
    public async Task ADamagedManifestStopsTheCollection()
    {
        await _store.Publish(_store.Memory(1), "web");
        await _store.Publish(_store.Memory(2), "db");
        await _store.Images.RemoveAsync("db");
        await _store.Images.CollectAsync();
        var path = Path.Combine(_store.Root, "images", "web", "0000000001.gmi");
        var bytes = await File.ReadAllBytesAsync(path);
        bytes[40] ^= 1;
        await File.WriteAllBytesAsync(path, bytes);
        Assert.Equal(GuestMemoryError.InvalidImage, (await Assert.ThrowsAsync<GuestMemoryException>(() => _store.Images.CollectAsync())).Error);
        Assert.Equal(2, _store.Packs().Length);
    }

    [Fact]
    public async Task AnIndexOfPacksThatAreGoneIsNoHarm()
    {
        // As an upload leaves it that was taken for dead, and collections that change it at once.
        await _store.Publish(_store.Memory(1, 2));
        foreach (var pack in _store.Packs()) File.Delete(pack);
        await _store.Images.RemoveAsync("web");
        Assert.NotEmpty(Directory.GetFiles(Path.Combine(_store.Root, "index")));
        await _store.Publish(_store.Memory(1, 2));
        Assert.Equal(StoreFixture.Content([1, 2], 2 * StoreFixture.Chunk), await _store.Load());
    }

    [Fact]
    public async Task APackNeverHasTheNameOfAnother()
    {
        await _store.Publish(_store.Memory(1, 2));
        var before = _store.Packs();
        await _store.Images.RemoveAsync("web");
        for (var i = 0; i < 2; i++) await _store.Images.CollectAsync();
        Assert.Empty(_store.Packs());
        await _store.Publish(_store.Memory(1, 2));
        Assert.Empty(_store.Packs().Intersect(before, StringComparer.Ordinal));
    }

    [Fact]
    public async Task WhatOnlyAPendingManifestNamesStaysDoomed()
    {
        await _store.Publish(_store.Memory(1));
        var manifest = await File.ReadAllBytesAsync(Path.Combine(_store.Root, "images", "web", "0000000001.gmi"));
        await _store.Images.RemoveAsync("web");
        await _store.Images.CollectAsync();
        Directory.CreateDirectory(Path.Combine(_store.Root, "pending"));
        await File.WriteAllBytesAsync(Path.Combine(_store.Root, "pending", "of-one-that-may-give-up"), manifest);
        Assert.Equal((0, 0, 1), Counts(await _store.Images.CollectAsync()));
        // Another collection may be about to remove it: who uploads now does not count on it.
        Assert.Equal(0, (await _store.Publish(_store.Memory(1))).SharedCount);
    }

    [Fact]
    public async Task AGenerationWhoseUploadDiedIsAnnounced()
    {
        for (var i = 1; i <= 2; i++) await _store.Publish(_store.Memory(i));
        var latest = Path.Combine(_store.Root, "images", "web", "latest");
        await File.WriteAllTextAsync(latest, "1 1\n");
        await _store.Images.CollectAsync();
        Assert.Equal(StoreFixture.Content([2], StoreFixture.Chunk), await _store.Load());
        // One that lacks a chunk was given up.
        await File.WriteAllTextAsync(latest, "1 1\n");
        foreach (var pack in (await _store.Images.OpenAsync("web", 2)).Packs) File.Delete(Path.Combine(_store.Root, ChunkPack.KeyOf(pack)));
        await _store.Images.CollectAsync();
        Assert.Equal(StoreFixture.Content([1], StoreFixture.Chunk), await _store.Load());
        Assert.Equal(GuestMemoryError.ImageNotFound, (await Assert.ThrowsAsync<GuestMemoryException>(() => _store.Images.OpenAsync("web", 2))).Error);
    }

    [Fact]
    public async Task LeftoversGo()
    {
        await _store.Publish(_store.Memory(1));
        string[] paths = [.. new[] { $"packs/.{Guid.NewGuid():N}.part", $"packs/.{Guid.NewGuid():N}.part", "packs/.mine.part", $".{Guid.NewGuid():N}.part" }.Select(path => Path.Combine(_store.Root, path))];
        foreach (var path in paths) await File.WriteAllTextAsync(path, "x");
        foreach (var path in paths.Skip(1)) File.SetLastWriteTimeUtc(path, DateTime.UtcNow - TimeSpan.FromHours(1));
        await _store.Images.CollectAsync();
        // One is new, one is not the store's, and one lies where the store puts none.
        Assert.Equal([true, false, true, true], paths.Select(File.Exists));
    }

    /// <summary>Uploads, removals and collections at once: every image that is there is whole, at any moment.</summary>
    [Fact]
    public async Task UploadsAndCollectionsKeepOutOfEachOthersWay()
    {
        var rounds = int.Parse(Environment.GetEnvironmentVariable("GUESTMEMORY_STORE_ROUNDS") ?? "20", CultureInfo.InvariantCulture);
        using var end = new CancellationTokenSource();
        var removed = 0;
        var collectors = Enumerable.Range(0, 2).Select(_ => Task.Run(async () =>
        {
            while (!end.IsCancellationRequested) Interlocked.Add(ref removed, (await _store.Images.CollectAsync()).Removed);
        })).ToArray();
        await Task.WhenAll(Enumerable.Range(0, 3).Select(worker => Task.Run(async () =>
        {
            var random = new Random(worker);
            for (var round = 0; round < rounds || Volatile.Read(ref removed) == 0; round++)
            {
                Assert.DoesNotContain(collectors, static collector => collector.IsCompleted);
                // Few contents, so that they come and go.
                var chunks = Enumerable.Range(0, 6).Select(_ => random.Next(12)).Append(100 + worker).ToArray();
                var name = $"image{random.Next(3)}";
                using var stop = new CancellationTokenSource();
                if (random.Next(4) == 0) stop.CancelAfter(random.Next(20));
                try
                {
                    var image = await _store.Images.PublishAsync(_store.Memory(chunks), name, new PublishOptions { ChunkSize = StoreFixture.Chunk }, stop.Token);
                    var manifest = await _store.Images.OpenAsync(name, image.Generation);
                    Assert.Empty((await _store.Images.TestAsync(manifest)).Errors);
                    if (random.Next(2) == 0) await _store.Images.RemoveAsync(name, image.Generation);
                }
                catch (OperationCanceledException)
                {
                    // It was ended.
                }
            }
        })));
        await end.CancelAsync();
        await Task.WhenAll(collectors);
        await foreach (var image in _store.Images.ListAsync(allGenerations: true)) Assert.Empty((await _store.Images.TestAsync(await _store.Images.OpenAsync(image.Name, image.Generation))).Errors);
    }

    private static (int Removed, int Waiting, int Kept) Counts(CollectionResult result) => (result.Removed, result.Waiting, result.Kept);

    private IEnumerable<string> Left() => Directory.GetFiles(_store.Root, "*", SearchOption.AllDirectories).Where(static path => !path.EndsWith("/latest", StringComparison.Ordinal) && !path.EndsWith("/lock", StringComparison.Ordinal));
}
