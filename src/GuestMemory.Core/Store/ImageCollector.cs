using System.Runtime.InteropServices;
using System.Text;

namespace GuestMemory.Core.Store;

/// <summary>
/// Removes packs that no image has any more, while images are published. What makes that safe, without a clock that all share:
/// <list type="number">
/// <item>A collection writes the packs that no manifest names to doomed/ID, and <i>then</i> the uploads whose leases it sees to doomed/ID.uploads.</item>
/// <item>An upload writes its lease, <i>then</i> reads what is doomed, and <i>then</i> lists the packs: it counts on nothing that is doomed, or not there. No pack ever has the name of another
/// one. So an upload that may count on a pack has its lease in doomed/ID.uploads.</item>
/// <item>A later collection removes what doomed/ID names when each of those leases is gone, and when <i>after</i> that no manifest, published or pending, names it. It removes doomed/ID itself when
/// each of its packs was removed, or is named by a manifest that was published.</item>
/// <item>An upload writes its manifest to pending/ID, and <i>then</i> renews its lease: where that succeeds, a collection that finds the lease gone finds the manifest, too.</item>
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
        var packs = await ListPacksAsync(_objects, cancellation);
        var doomed = await ReadDoomedAsync(_objects, cancellation);
        var (needed, published) = await ReadNeededAsync(cancellation);
        needed.UnionWith(published);
        var fresh = packs.Keys.Where(pack => !needed.Contains(pack) && !doomed.Contains(pack)).ToArray();
        if (fresh.Length > 0) await DoomAsync(fresh, cancellation);
        await AnnounceAsync(packs, cancellation);
        await _objects.RemoveLeftoversAsync(time - UploadLease.Lifetime, cancellation);
        var waiting = packs.Where(pack => !needed.Contains(pack.Key)).ToList();
        var kept = packs.Where(pack => needed.Contains(pack.Key)).ToList();
        return new CollectionResult(removed.Count, removed.Size, waiting.Count, Sum(waiting), kept.Count, Sum(kept));

        static ulong Sum(List<KeyValuePair<ChunkDigest, ulong>> packs) => packs.Aggregate(0UL, static (sum, pack) => sum + pack.Value);
    }

    /// <summary>The packs that a store has, with their bytes.</summary>
    public static async Task<Dictionary<ChunkDigest, ulong>> ListPacksAsync(ObjectStore objects, CancellationToken cancellation)
    {
        var packs = new Dictionary<ChunkDigest, ulong>();
        foreach (var entry in await objects.ListAsync(ChunkPack.Prefix, cancellation))
        {
            if (ChunkPack.DigestOf(entry.Key) is { } digest && ChunkPack.KeyOf(digest) == entry.Key) packs[digest] = (ulong)entry.Size;
        }

        return packs;
    }

    /// <summary>Announces generations whose upload died between the manifest and its name; one that lacks a pack was given up, and goes.</summary>
    private async Task AnnounceAsync(Dictionary<ChunkDigest, ulong> packs, CancellationToken cancellation)
    {
        var manifests = await store.ListManifestsAsync(null, cancellation);
        // An upload that goes on has its pending manifest until the name stands for the generation.
        if ((await _objects.ListAsync(ImagePublisher.PendingPrefix, cancellation)).Count > 0) return;
        foreach (var image in manifests.GroupBy(static each => each.Name, StringComparer.Ordinal))
        {
            var highest = (await store.ReadLatestAsync(image.Key, cancellation))?.Highest ?? 0;
            foreach (var (name, generation) in image.Where(each => each.Generation > highest))
            {
                if (await store.TryOpenAsync(name, generation, cancellation) is not { } manifest) continue;
                if (manifest.Packs.All(packs.ContainsKey)) await store.SetLatestAsync(name, generation, cancellation);
                else await _objects.DeleteAsync(ImageStore.ManifestKey(name, generation), cancellation);
            }
        }
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
        var entries = (await _objects.ListAsync(Prefix, cancellation)).Select(static entry => entry.Key).ToHashSet(StringComparer.Ordinal);
        var living = (await _objects.ListAsync(UploadLease.Prefix, cancellation)).Select(static lease => lease.Key).ToHashSet(StringComparer.Ordinal);
        var ready = new List<(string Key, HashSet<ChunkDigest> Packs)>();
        foreach (var key in entries)
        {
            if (key.EndsWith(UploadsSuffix, StringComparison.Ordinal))
            {
                // Left by a collection that was overtaken by another one.
                if (!entries.Contains(key[..^UploadsSuffix.Length])) await _objects.DeleteAsync(key, cancellation);
            }
            else if (await _objects.TryReadAsync(key + UploadsSuffix, 64 << 20, cancellation) is not { } uploads)
            {
                // The collection that wrote it ended before it could say who may count on it.
                await WriteUploadsAsync(key, cancellation);
            }
            else if (!Encoding.UTF8.GetString(uploads.Content).Split('\n').Any(living.Contains))
            {
                ready.Add((key, await ReadPacksAsync(_objects, key, cancellation)));
            }
        }

        if (ready.Count == 0) return (0, 0);
        var (pending, published) = await ReadNeededAsync(cancellation);
        var sizes = await ListPacksAsync(_objects, cancellation);
        var gone = ready.SelectMany(static each => each.Packs).Where(pack => !pending.Contains(pack) && !published.Contains(pack)).ToHashSet();
        // First nobody may find chunks there any more, and last it may be forgotten that they are doomed.
        await RemoveFromIndexAsync(gone, cancellation);
        var (count, size) = (0, 0UL);
        foreach (var pack in gone)
        {
            await _objects.DeleteAsync(ChunkPack.KeyOf(pack), cancellation);
            if (!sizes.TryGetValue(pack, out var bytes)) continue;
            count++;
            size += bytes;
        }

        // A manifest that is pending may be given up, and another collection may be about to remove its packs: who uploads must not count on them yet.
        foreach (var (key, packs) in ready.Where(each => each.Packs.All(pack => gone.Contains(pack) || published.Contains(pack))))
        {
            await _objects.DeleteAsync(key + UploadsSuffix, cancellation);
            await _objects.DeleteAsync(key, cancellation);
        }

        return (count, size);
    }

    private async Task RemoveFromIndexAsync(HashSet<ChunkDigest> packs, CancellationToken cancellation)
    {
        foreach (var entry in await _objects.ListAsync(ChunkIndex.Prefix, cancellation))
        {
            if (await ChunkIndex.TryReadAsync(_objects, entry.Key, cancellation) is not var (chunks, version) || !chunks.Exists(chunk => packs.Contains(chunk.Place.Pack))) continue;
            chunks.RemoveAll(chunk => packs.Contains(chunk.Place.Pack));
            if (chunks.Count == 0) await _objects.DeleteAsync(entry.Key, cancellation);
            // Another collection may have changed it; what stays there is of packs that are not there, on which nobody counts.
            else await _objects.TryReplaceAsync(entry.Key, ChunkIndex.ToBytes(chunks), version, cancellation);
        }
    }

    /// <summary>The packs that manifests name: those that are pending, and those that are published.</summary>
    private async Task<(HashSet<ChunkDigest> Pending, HashSet<ChunkDigest> Published)> ReadNeededAsync(CancellationToken cancellation)
    {
        var (pending, published) = (new HashSet<ChunkDigest>(), new HashSet<ChunkDigest>());
        // A manifest that is published from pending meanwhile is in one of the two, if pending ones are read first.
        foreach (var entry in await _objects.ListAsync(ImagePublisher.PendingPrefix, cancellation))
        {
            if (await _objects.TryReadAsync(entry.Key, ImageManifest.MaxSize, cancellation) is { } found) pending.UnionWith(ImageManifest.Read(found.Content, $"{entry.Key} in the store {store.Location}").Packs);
        }

        foreach (var (name, generation) in await store.ListManifestsAsync(null, cancellation))
        {
            if (await store.TryOpenAsync(name, generation, cancellation) is { } manifest) published.UnionWith(manifest.Packs);
        }

        return (pending, published);
    }

    private static async Task<HashSet<ChunkDigest>> ReadPacksAsync(ObjectStore objects, string key, CancellationToken cancellation)
    {
        if (await objects.TryReadAsync(key, 1 << 30, cancellation) is not { } found || found.Content.Length % ChunkDigest.Size != 0) return [];
        return [.. MemoryMarshal.Cast<byte, ChunkDigest>(found.Content)];
    }
}
