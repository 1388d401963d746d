using System.Runtime.InteropServices;
using System.Text;

namespace GuestMemory.Core.Store;

/// <summary>
/// Removes packs that no image has any more, while images are published. What makes that safe, without a clock that all share:
/// <list type="number">
/// <item>A collection writes the packs that no manifest names to doomed/ID, and <i>then</i> the uploads whose leases it sees to doomed/ID.uploads.</item>
/// <item>An upload writes its lease, and <i>then</i> reads what is doomed: it counts on nothing of that, and gives a pack that has the name of a doomed one another name.
/// So an upload that may count on a pack has its lease in doomed/ID.uploads.</item>
/// <item>A later collection removes what doomed/ID names when each of those leases is gone, and when <i>after</i> that no manifest, published or pending, names it.</item>
/// <item>An upload writes its manifest to pending/ID, and <i>then</i> renews its lease: where that succeeds, whoever finds the lease gone finds the manifest, too.</item>
/// </list>
/// The lease of an upload that has died is removed after <see cref="UploadLease.Lifetime"/>. An upload that only stood still so long sees that its lease is gone, and begins again.
/// </summary>
internal sealed class ImageCollector(ImageStore store)
{
    private const string Prefix = "doomed/";
    private const string UploadsSuffix = ".uploads";

    // A pending manifest whose upload has died holds packs no longer than that.
    private static readonly TimeSpan s_pendingLifetime = TimeSpan.FromDays(1);

    private readonly ObjectStore _objects = store.Objects;

    /// <summary>The packs that a collection may remove at any moment.</summary>
    public static async Task<HashSet<ChunkDigest>> ReadDoomedAsync(ObjectStore objects, CancellationToken cancellation)
    {
        var doomed = new HashSet<ChunkDigest>();
        foreach (var entry in await objects.ListAsync(Prefix, cancellation))
        {
            if (!entry.Key.EndsWith(UploadsSuffix, StringComparison.Ordinal)) doomed.UnionWith(await ReadPacksAsync(objects, entry.Key, cancellation));
        }

        return doomed;
    }

    public async Task<CollectionResult> RunAsync(CancellationToken cancellation)
    {
        var time = await _objects.GetTimeAsync(cancellation);
        await ExpireUploadsAsync(time, cancellation);
        var removed = await RemoveDoomedAsync(cancellation);
        var packs = (await _objects.ListAsync(ChunkPack.Prefix, cancellation)).Where(static entry => ChunkPack.DigestOf(entry.Key) is not null)
            .ToDictionary(static entry => ChunkPack.DigestOf(entry.Key)!.Value, static entry => (ulong)entry.Size);
        var doomed = await ReadDoomedAsync(_objects, cancellation);
        var needed = await ReadNeededAsync(cancellation);
        var fresh = packs.Keys.Where(pack => !needed.Contains(pack) && !doomed.Contains(pack)).ToArray();
        if (fresh.Length > 0) await DoomAsync(fresh, cancellation);
        await _objects.RemoveLeftoversAsync(time - UploadLease.Lifetime, cancellation);
        var waiting = packs.Where(pack => !needed.Contains(pack.Key)).ToList();
        var kept = packs.Where(pack => needed.Contains(pack.Key)).ToList();
        return new CollectionResult(removed.Count, removed.Size, waiting.Count, Sum(waiting), kept.Count, Sum(kept));

        static ulong Sum(List<KeyValuePair<ChunkDigest, ulong>> packs) => packs.Aggregate(0UL, static (sum, pack) => sum + pack.Value);
    }

    /// <summary>Removes the leases of uploads that have died, and then the manifests that such have left pending.</summary>
    private async Task ExpireUploadsAsync(DateTimeOffset time, CancellationToken cancellation)
    {
        foreach (var lease in await _objects.ListAsync(UploadLease.Prefix, cancellation))
        {
            if (time - lease.Modified > UploadLease.Lifetime) await _objects.DeleteAsync(lease.Key, cancellation);
        }

        foreach (var pending in await _objects.ListAsync(ImagePublisher.PendingPrefix, cancellation))
        {
            if (time - pending.Modified > s_pendingLifetime) await _objects.DeleteAsync(pending.Key, cancellation);
        }
    }

    /// <summary>Writes packs down that no image names, and who may count on them all the same.</summary>
    private async Task DoomAsync(ChunkDigest[] packs, CancellationToken cancellation)
    {
        var key = $"{Prefix}{Guid.NewGuid():N}";
        await _objects.TryCreateAsync(key, MemoryMarshal.AsBytes<ChunkDigest>(packs).ToArray(), cancellation);
        await WriteUploadsAsync(key, cancellation);
    }

    private async Task WriteUploadsAsync(string key, CancellationToken cancellation)
    {
        var uploads = (await _objects.ListAsync(UploadLease.Prefix, cancellation)).Select(static lease => lease.Key);
        await _objects.TryCreateAsync(key + UploadsSuffix, Encoding.UTF8.GetBytes(string.Join('\n', uploads)), cancellation);
    }

    /// <summary>Removes what earlier collections wrote down and nobody counts on.</summary>
    private async Task<(int Count, ulong Size)> RemoveDoomedAsync(CancellationToken cancellation)
    {
        var entries = await _objects.ListAsync(Prefix, cancellation);
        var living = (await _objects.ListAsync(UploadLease.Prefix, cancellation)).Select(static lease => lease.Key).ToHashSet(StringComparer.Ordinal);
        var ready = new List<(string Key, HashSet<ChunkDigest> Packs)>();
        foreach (var entry in entries.Where(static entry => !entry.Key.EndsWith(UploadsSuffix, StringComparison.Ordinal)))
        {
            if (await _objects.TryReadAsync(entry.Key + UploadsSuffix, 64 << 20, cancellation) is not { } uploads)
            {
                // The collection that wrote it ended before it could say who may count on it.
                await WriteUploadsAsync(entry.Key, cancellation);
                continue;
            }

            if (!Encoding.UTF8.GetString(uploads.Content).Split('\n').Any(living.Contains)) ready.Add((entry.Key, await ReadPacksAsync(_objects, entry.Key, cancellation)));
        }

        if (ready.Count == 0) return (0, 0);
        var needed = await ReadNeededAsync(cancellation);
        var sizes = (await _objects.ListAsync(ChunkPack.Prefix, cancellation)).ToDictionary(static entry => entry.Key, static entry => (ulong)entry.Size, StringComparer.Ordinal);
        var gone = ready.SelectMany(static each => each.Packs).Where(pack => !needed.Contains(pack)).ToHashSet();
        // First nobody may find chunks there any more, and last it may be forgotten that they are doomed.
        await RemoveFromIndexAsync(gone, cancellation);
        var (count, size) = (0, 0UL);
        foreach (var key in gone.Select(ChunkPack.KeyOf))
        {
            await _objects.DeleteAsync(key, cancellation);
            if (!sizes.TryGetValue(key, out var bytes)) continue;
            count++;
            size += bytes;
        }

        foreach (var (key, _) in ready)
        {
            await _objects.DeleteAsync(key, cancellation);
            await _objects.DeleteAsync(key + UploadsSuffix, cancellation);
        }

        return (count, size);
    }

    private async Task RemoveFromIndexAsync(HashSet<ChunkDigest> packs, CancellationToken cancellation)
    {
        foreach (var entry in await _objects.ListAsync(ChunkIndex.Prefix, cancellation))
        {
            if (await ChunkIndex.TryReadAsync(_objects, entry.Key, cancellation) is not { } chunks || !chunks.Exists(chunk => packs.Contains(chunk.Place.Pack))) continue;
            chunks.RemoveAll(chunk => packs.Contains(chunk.Place.Pack));
            await ChunkIndex.WriteAsync(_objects, chunks, cancellation);
            await _objects.DeleteAsync(entry.Key, cancellation);
        }
    }

    /// <summary>The packs that manifests name, published or pending.</summary>
    private async Task<HashSet<ChunkDigest>> ReadNeededAsync(CancellationToken cancellation)
    {
        var needed = new HashSet<ChunkDigest>();
        // A manifest that is published from pending meanwhile is in one of the two, if pending ones are read first.
        foreach (var entry in await _objects.ListAsync(ImagePublisher.PendingPrefix, cancellation))
        {
            if (await _objects.TryReadAsync(entry.Key, ImageManifest.MaxSize, cancellation) is { } pending) needed.UnionWith(ImageManifest.Read(pending.Content, $"{entry.Key} in the store {store.Location}").Packs);
        }

        foreach (var (name, generation) in await store.ListManifestsAsync(null, cancellation))
        {
            if (await store.TryOpenAsync(name, generation, cancellation) is { } manifest) needed.UnionWith(manifest.Packs);
        }

        return needed;
    }

    private static async Task<HashSet<ChunkDigest>> ReadPacksAsync(ObjectStore objects, string key, CancellationToken cancellation)
    {
        if (await objects.TryReadAsync(key, 1 << 30, cancellation) is not { } found || found.Content.Length % ChunkDigest.Size != 0) return [];
        return [.. MemoryMarshal.Cast<byte, ChunkDigest>(found.Content)];
    }
}
