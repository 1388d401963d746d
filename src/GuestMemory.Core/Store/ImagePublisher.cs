using System.Collections.Concurrent;

namespace GuestMemory.Core.Store;

/// <summary>Publishes one memory. ImageCollector says how uploads and collections keep out of each other's way.</summary>
internal sealed class ImagePublisher(ImageStore store, GuestMemoryMmap memory, string name, PublishOptions options)
{
    public const string PendingPrefix = "pending/";

    private const int PackSize = 8 << 20;
    private const int Uploads = 4;
    private const int BatchSize = 8 << 20;
    private const int Attempts = 3;

    // An upload that is ended loses no more than that.
    private const int PacksOfIndex = 16;
    private const int MaxRecord = 64 << 20;

    private readonly ObjectStore _objects = store.Objects;
    private readonly int _chunkSize = options.ChunkSize;
    private readonly Dictionary<ChunkDigest, uint> _numbers = [];
    private readonly List<(ChunkDigest Digest, ChunkPlace Place)> _places = [];
    private readonly List<(ChunkDigest Digest, ChunkPlace Place)> _added = [];
    private readonly List<Task> _uploads = [];
    private readonly ConcurrentDictionary<ChunkDigest, bool> _arrived = new();
    private readonly SemaphoreSlim _room = new(Uploads);
    private ulong _uploaded;
    private int _shared;
    private int _named;
    private int _packs;

    public async Task<StoredImage> RunAsync(CancellationToken cancellation)
    {
        if (memory.Size == 0) throw new GuestMemoryException(GuestMemoryError.NoMemoryRegion, "An image of no memory cannot be published.");
        if (_chunkSize is < ImageManifest.MinChunkSize or > ImageManifest.MaxChunkSize || !System.Numerics.BitOperations.IsPow2(_chunkSize))
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"Chunks of {_chunkSize} bytes are not possible: a power of two from 4 KiB to 16 MiB is.");
        if (options.SigningKey is { } key && key.ExportParameters(includePrivateParameters: false).Curve.Oid is not { Value: ImageManifest.P256 })
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "An image is signed with an ECDSA key on the curve P-256, not with one on another curve.");
        if (options.Record.Length > MaxRecord || (options.Record.Length > 0 && !options.Record.Span.StartsWith("GMTOUCH1"u8)))
            throw new GuestMemoryException(GuestMemoryError.InvalidRecord, $"What was given as the touch record of the image is none, or larger than the {MaxRecord >> 20} MiB that an image takes.");
        if ((((memory.Size - 1) / (ulong)_chunkSize) + 1) * ImageManifest.BytesOfChunk + (ulong)options.Record.Length + (16UL * (ulong)memory.Regions.Count) + 4096 > ImageManifest.MaxSize)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"{memory.Size >> 20} MiB in chunks of {_chunkSize} bytes are more than a manifest can name. Give larger chunks.");
        for (var attempt = 1; ; attempt++)
        {
            await using var lease = await UploadLease.CreateAsync(_objects, cancellation);
            using var either = CancellationTokenSource.CreateLinkedTokenSource(cancellation, lease.Lost);
            try
            {
                if (await TryRunAsync(lease, either.Token) is { } published) return published;
            }
            catch (OperationCanceledException) when (!cancellation.IsCancellationRequested)
            {
                // The lease was lost.
            }
            finally
            {
                // They use what this attempt holds.
                await Task.WhenAll(_uploads).ContinueWith(static _ => { }, CancellationToken.None, TaskContinuationOptions.None, TaskScheduler.Default);
                await KeepForTheNextAsync();
            }

            if (attempt == Attempts)
            {
                throw new GuestMemoryException(GuestMemoryError.StoreFailed,
                    $"The image '{name}' was not published: {Attempts} times the upload stood still for more than {UploadLease.Lifetime.TotalMinutes} minutes, and a collection took it for dead.");
            }

            Forget();
        }
    }

    /// <summary>One attempt; null where its lease was lost.</summary>
    private async Task<StoredImage?> TryRunAsync(UploadLease lease, CancellationToken cancellation)
    {
        // After the lease was written: what a collection finds later waits for this upload. What it found before is doomed, or not there any more, whatever an index says.
        var doomed = await ImageCollector.ReadDoomedAsync(_objects, cancellation);
        var packs = await ImageCollector.ListPacksAsync(_objects, cancellation);
        var index = await ChunkIndex.LoadAsync(_objects, pack => !doomed.Contains(pack) && packs.ContainsKey(pack), cancellation);
        var chunks = await AddChunksAsync(index, cancellation);
        await WriteIndexAsync(cancellation);

        var generations = await store.ListManifestsAsync(name, cancellation);
        var before = generations.Count == 0 ? null : await store.TryOpenAsync(name, generations[^1].Generation, cancellation);
        var generation = Math.Max(generations.Count == 0 ? 0 : generations[^1].Generation, (await store.ReadLatestAsync(name, cancellation))?.Highest ?? 0) + 1;
        var manifest = Seal(chunks, generation, before);
        if (manifest.Bytes.Length > ImageManifest.MaxSize)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"The manifest has {manifest.Bytes.Length} bytes, more than the {ImageManifest.MaxSize} that one may have. Give larger chunks.");
        var pending = PendingPrefix + lease.Id;
        await _objects.TryCreateAsync(pending, manifest.Bytes, cancellation);
        try
        {
            // From here on every collection sees what the image needs, unless one took the upload for dead before.
            if (!await lease.TryRenewAsync(cancellation) || !await IsThereAsync(pending)) return null;
            while (!await _objects.TryCreateAsync(ImageStore.ManifestKey(name, generation), manifest.Bytes, cancellation))
            {
                // Another upload took the number.
                before = await store.TryOpenAsync(name, generation, cancellation) ?? before;
                manifest = Seal(chunks, ++generation, before);
            }

            // Who stands still here for longer than a pending manifest is kept must not say that it is published.
            if (!await IsThereAsync(pending))
            {
                await _objects.DeleteAsync(ImageStore.ManifestKey(name, generation), CancellationToken.None);
                return null;
            }

            await store.SetLatestAsync(name, generation, CancellationToken.None);
        }
        finally
        {
            await _objects.DeleteAsync(pending, CancellationToken.None);
        }

        return store.Show(manifest, isLatest: true) with { UploadedSize = _uploaded, SharedCount = _shared };
    }

    private async Task<bool> IsThereAsync(string key) => (await _objects.ListAsync(key, CancellationToken.None)).Any(entry => entry.Key == key);

    /// <summary>Says where the chunks of the packs are that were uploaded.</summary>
    private async Task WriteIndexAsync(CancellationToken cancellation)
    {
        await Task.WhenAll(_uploads);
        _uploads.Clear();
        await ChunkIndex.WriteAsync(_objects, _added, cancellation);
        _added.Clear();
    }

    /// <summary>Has the next attempt, or the next upload, use what this one uploaded. It is no harm where that cannot be done, nor where the packs are removed: who reads an index looks whether they are there.</summary>
    private async Task KeepForTheNextAsync()
    {
        try
        {
            await ChunkIndex.WriteAsync(_objects, _added.FindAll(chunk => _arrived.ContainsKey(chunk.Place.Pack)), CancellationToken.None);
        }
        catch (GuestMemoryException)
        {
            // It is uploaded again, then.
        }

        _added.Clear();
    }

    /// <summary>Reads the memory, and uploads the chunks that the store does not have; the result is the number of each chunk.</summary>
    private async Task<uint[]> AddChunksAsync(ChunkIndex index, CancellationToken cancellation)
    {
        var count = checked((int)(((memory.Size - 1) / (ulong)_chunkSize) + 1));
        var chunks = new uint[count];
        var batch = Math.Max(4, BatchSize / _chunkSize);
        var plain = new byte[batch][];
        var packed = new byte[batch][];
        var digests = new ChunkDigest?[batch];
        var stored = new int[batch];
        for (var i = 0; i < batch; i++) (plain[i], packed[i]) = (new byte[_chunkSize], new byte[_chunkSize]);
        var pack = new ChunkPack(PackSize, _chunkSize);
        var parallel = new ParallelOptions { CancellationToken = cancellation };
        for (var first = 0; first < count; first += batch)
        {
            var those = Math.Min(batch, count - first);
            await Parallel.ForAsync(0, those, parallel, async (i, token) =>
            {
                var content = plain[i].AsMemory(0, SizeOf(first + i));
                await ReadAsync((ulong)(first + i) * (ulong)_chunkSize, content, token);
                digests[i] = content.Span.ContainsAnyExcept((byte)0) ? ChunkDigest.Of(content.Span) : null;
                // Most of a second generation is there already.
                stored[i] = digests[i] is { } digest && !index.TryFind(digest, out _) ? ImageCodec.TryPack(options.Compression, content.Span, packed[i].AsSpan(0, content.Length - 1)) : 0;
            });
            for (var i = 0; i < those; i++)
            {
                if (digests[i] is not { } digest) continue;
                var size = SizeOf(first + i);
                chunks[first + i] = _numbers.TryGetValue(digest, out var number) ? number
                    : index.TryFind(digest, out var place) ? Share(digest, place)
                    : stored[i] == 0 ? Add(pack, digest, plain[i].AsSpan(0, size), size, ImageCompression.None)
                    : Add(pack, digest, packed[i].AsSpan(0, stored[i]), size, options.Compression);
                if (pack.IsFull) await UploadAsync(pack, cancellation);
            }

            options.Progress?.Report(Math.Min(memory.Size, (ulong)(first + those) * (ulong)_chunkSize));
        }

        if (!pack.IsEmpty) await UploadAsync(pack, cancellation);
        return chunks;
    }

    private uint Share(ChunkDigest digest, ChunkPlace place)
    {
        _shared++;
        _places.Add((digest, place));
        return _numbers[digest] = (uint)_places.Count;
    }

    private uint Add(ChunkPack pack, ChunkDigest digest, ReadOnlySpan<byte> stored, int size, ImageCompression compression)
    {
        // The pack gets its name when it is complete.
        _places.Add((digest, new ChunkPlace(default, pack.Add(digest, stored, size, compression), (uint)stored.Length, compression)));
        return _numbers[digest] = (uint)_places.Count;
    }

    private async Task UploadAsync(ChunkPack pack, CancellationToken cancellation)
    {
        // A name that was removed must not come again: a collection that stood still may remove it once more.
        var bytes = pack.Complete((ulong)Random.Shared.NextInt64());
        var digest = ChunkDigest.Of(bytes);
        pack.Clear();
        for (var i = _named; i < _places.Count; i++)
        {
            var (chunk, place) = _places[i];
            if (place.Pack != default) continue;
            _places[i] = (chunk, place with { Pack = digest });
            _added.Add(_places[i]);
        }

        _named = _places.Count;
        // What has failed ends the upload now.
        foreach (var ended in _uploads.Where(static upload => upload.IsCompleted)) await ended;
        _uploads.RemoveAll(static upload => upload.IsCompleted);
        await _room.WaitAsync(cancellation);
        // It gives its room back whatever happens.
        _uploads.Add(Task.Run(async () =>
        {
            try
            {
                await _objects.TryCreateAsync(ChunkPack.KeyOf(digest), bytes, cancellation);
                Interlocked.Add(ref _uploaded, (ulong)bytes.Length);
                _arrived[digest] = true;
            }
            finally
            {
                _room.Release();
            }
        }, CancellationToken.None));
        if (++_packs % PacksOfIndex == 0) await WriteIndexAsync(cancellation);
    }

    private ImageManifest Seal(uint[] chunks, ulong generation, ImageManifest? before)
    {
        var packs = new Dictionary<ChunkDigest, uint>();
        foreach (var (_, place) in _places) packs.TryAdd(place.Pack, (uint)packs.Count);
        var manifest = new ImageManifest
        {
            Name = name,
            Generation = generation,
            Created = DateTimeOffset.FromUnixTimeMilliseconds(DateTimeOffset.UtcNow.ToUnixTimeMilliseconds()),
            Size = memory.Size,
            ChunkSize = _chunkSize,
            Regions = [.. memory.Regions.Select(static region => new ImageRegion(region.GuestAddress, region.Size))],
            Parent = before?.Digest ?? default,
            Packs = [.. packs.OrderBy(static pack => pack.Value).Select(static pack => pack.Key)],
            Chunks = chunks,
            Digests = [.. _places.Select(static place => place.Digest)],
            PackNumbers = [.. _places.Select(place => packs[place.Place.Pack])],
            Offsets = [.. _places.Select(static place => place.Place.Offset)],
            StoredSizes = [.. _places.Select(static place => place.Place.Stored)],
            Compressions = [.. _places.Select(static place => (byte)place.Place.Compression)],
            Record = options.Record.ToArray(),
        };
        manifest.Seal(options.SigningKey);
        return manifest;
    }

    private void Forget()
    {
        _numbers.Clear();
        _places.Clear();
        _added.Clear();
        _uploads.Clear();
        (_named, _shared) = (0, 0);
    }

    private int SizeOf(int chunk) => (int)Math.Min((ulong)_chunkSize, memory.Size - ((ulong)chunk * (ulong)_chunkSize));

    /// <summary>Reads bytes of the regions, as if they stood one behind the other.</summary>
    private async ValueTask ReadAsync(ulong offset, Memory<byte> destination, CancellationToken cancellation)
    {
        foreach (var region in memory.Regions)
        {
            if (offset >= region.Size)
            {
                offset -= region.Size;
                continue;
            }

            var part = (int)Math.Min((ulong)destination.Length, region.Size - offset);
            var address = new GuestAddress(region.GuestAddress + offset);
            var count = await memory.ReadAsync(address, destination[..part], cancellation);
            if (count != part) throw new GuestMemoryException(GuestMemoryError.PartialBuffer, $"The memory could be read at 0x{address.Value + (ulong)count:x} no more.");
            destination = destination[part..];
            if (destination.IsEmpty) return;
            offset = 0;
        }
    }
}
