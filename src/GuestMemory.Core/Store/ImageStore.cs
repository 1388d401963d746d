using System.Globalization;
using System.Security.Cryptography;
using System.Text;

namespace GuestMemory.Core.Store;

/// <summary>
/// Images of memory in a store that a fleet shares. An image is a manifest, and chunks that all images share; a name has generations,
/// of which the latest is what the name alone stands for. Any number of processes may publish, read, remove and collect at once.
/// </summary>
public sealed class ImageStore : IDisposable
{
    private const string Prefix = "images/";
    private const string Suffix = ".gmi";
    private const string Latest = "latest";

    private readonly ObjectStore _objects;

    /// <param name="objects">Where the objects are; taken over.</param>
    public ImageStore(ObjectStore objects) => _objects = objects;

    /// <summary>Where it is.</summary>
    public string Location => _objects.Location;

    internal ObjectStore Objects => _objects;

    /// <summary>Opens the store of a location; nothing is accessed yet.</summary>
    /// <param name="store">A directory, or the address of one that a web server publishes.</param>
    /// <exception cref="GuestMemoryException">ValueNotSupported: an address of a kind that is not known.</exception>
    public static ImageStore Open(string store)
    {
        ArgumentNullException.ThrowIfNull(store);
        if (!store.Contains("://", StringComparison.Ordinal)) return new ImageStore(new DirectoryStore(store));
        if (store.StartsWith("http://", StringComparison.OrdinalIgnoreCase) || store.StartsWith("https://", StringComparison.OrdinalIgnoreCase)) return new ImageStore(new HttpStore(store));
        throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"{store} is not a store that this program can use: give a directory, or an address that begins with https://.");
    }

    /// <summary>Publishes a memory as the next generation of a name: chunks that the store does not have are uploaded, and last the manifest.</summary>
    /// <param name="memory">The memory. What is written to it meanwhile is in the image, or not.</param>
    /// <param name="name">The name: letters, digits, '.', '-' and '_', at most 128.</param>
    /// <param name="options">How.</param>
    /// <param name="cancellation">Ends it. Nothing of the image is to be seen; what was uploaded is used by the next attempt, or collected.</param>
    /// <exception cref="GuestMemoryException">ValueNotSupported: the name, the chunk size or the key. StoreFailed, StoreDenied; PageNotAccessible.</exception>
    public Task<StoredImage> PublishAsync(GuestMemoryMmap memory, string name, PublishOptions? options = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(memory);
        RequireName(name);
        return Task.Run(() => new ImagePublisher(this, memory, name, options ?? new PublishOptions()).RunAsync(cancellation), cancellation);
    }

    /// <summary>Reads and checks the manifest of an image.</summary>
    /// <param name="name">The name.</param>
    /// <param name="generation">The generation; null for the latest.</param>
    /// <param name="trustedKeys">Public keys of which one must have signed it; null where any image will do.</param>
    /// <param name="cancellation">Abandons it.</param>
    /// <exception cref="GuestMemoryException">ImageNotFound; InvalidImage: it is damaged, or not the image of that name; ImageUntrusted; StoreFailed, StoreDenied.</exception>
    public async Task<ImageManifest> OpenAsync(string name, ulong? generation = null, IReadOnlyCollection<ECDsa>? trustedKeys = null, CancellationToken cancellation = default)
    {
        RequireName(name);
        var found = generation ?? (await ReadLatestAsync(name, cancellation) is { Generation: > 0 } latest ? latest.Generation : null as ulong?)
            ?? throw new GuestMemoryException(GuestMemoryError.ImageNotFound, $"The store {Location} has no image '{name}'.");
        var manifest = await TryOpenAsync(name, found, cancellation)
            ?? throw new GuestMemoryException(GuestMemoryError.ImageNotFound, $"The store {Location} has no generation {found} of the image '{name}'.");
        if (trustedKeys is not null && !manifest.IsSignedBy(trustedKeys))
        {
            throw new GuestMemoryException(GuestMemoryError.ImageUntrusted,
                $"The image {Describe(name, found)} is {(manifest.SigningKey is { } key ? $"signed with the key {key}, or claims it, which is none of the trusted ones" : "not signed")}. It is not used.");
        }

        return manifest;
    }

    /// <summary>The images of a store, by name and generation.</summary>
    /// <param name="name">The name; null for all.</param>
    /// <param name="allGenerations">Whether earlier generations are listed too.</param>
    /// <param name="failed">Told of each image whose manifest cannot be read, by any thread; null lets the first one end the listing.</param>
    /// <param name="cancellation">Abandons it.</param>
    /// <exception cref="GuestMemoryException">InvalidImage; StoreFailed, StoreDenied.</exception>
    public async IAsyncEnumerable<StoredImage> ListAsync(string? name = null, bool allGenerations = false, Action<GuestMemoryException>? failed = null, [System.Runtime.CompilerServices.EnumeratorCancellation] CancellationToken cancellation = default)
    {
        if (name is not null) RequireName(name);
        if (name is not null && !allGenerations)
        {
            // That needs no listing, which a web server does not have.
            if (await ReadLatestAsync(name, cancellation) is { Generation: > 0 } known && await TryShowAsync(name, known.Generation, isLatest: true, failed, cancellation) is { } newest) yield return newest;
            yield break;
        }

        foreach (var group in (await ListManifestsAsync(name, cancellation)).GroupBy(static each => each.Name, StringComparer.Ordinal))
        {
            var latest = (await ReadLatestAsync(group.Key, cancellation))?.Generation;
            foreach (var (_, generation) in group)
            {
                if ((allGenerations || generation == latest) && await TryShowAsync(group.Key, generation, generation == latest, failed, cancellation) is { } image) yield return image;
            }
        }
    }

    /// <summary>Writes an image to a raw file: the regions one behind the other, pages of zeros as holes. Every chunk is checked.</summary>
    /// <param name="manifest">The image.</param>
    /// <param name="path">The file, which is made beside its place and renamed.</param>
    /// <param name="overwrite">Whether a file that is there may be replaced.</param>
    /// <param name="progress">Told the bytes of memory done.</param>
    /// <param name="cancellation">Ends it; what was written is removed.</param>
    /// <exception cref="GuestMemoryException">FileExists, NotAFile; InvalidImage: a chunk is damaged; ObjectNotFound, StoreFailed, StoreDenied.</exception>
    public Task<Images.ImageInfo> SaveAsync(ImageManifest manifest, string path, bool overwrite = false, IProgress<ulong>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(manifest);
        return Task.Run(() => new ImageReader(_objects, manifest).Save(path, overwrite, progress, cancellation), cancellation);
    }

    /// <summary>
    /// Opens an image as guest memory, to be read. A chunk is read, and checked, when a byte of it is; the disposal of the regions is the caller's, and the
    /// store must stay open until then.
    /// </summary>
    /// <param name="manifest">The image.</param>
    /// <param name="name">What the region is called; several are called NAME-0, NAME-1 and so on.</param>
    /// <returns>Its memory. Reading it throws what reading the store does, and InvalidImage where a chunk is damaged.</returns>
    public GuestMemoryMmap OpenMemory(ImageManifest manifest, string name)
    {
        ArgumentNullException.ThrowIfNull(manifest);
        var chunks = new StoredChunks(new ImageReader(_objects, manifest));
        var regions = new List<GuestMemoryRegion>();
        ulong origin = 0;
        foreach (var region in manifest.Regions)
        {
            regions.Add(new Images.GuestRegionImage(new StoredMemory(chunks, origin, region.Size), Describe(manifest.Name, manifest.Generation), new GuestAddress(region.GuestAddress),
                manifest.Regions.Count == 1 ? name : $"{name}-{regions.Count}", Images.ImageFormat.Stored));
            origin += region.Size;
        }

        return GuestMemoryMmap.FromRegions(regions);
    }

    /// <summary>Reads every chunk of an image, and checks it.</summary>
    /// <param name="manifest">The image.</param>
    /// <param name="progress">Told the bytes of the different chunks done.</param>
    /// <param name="cancellation">Ends it.</param>
    /// <exception cref="GuestMemoryException">StoreFailed, StoreDenied.</exception>
    public Task<ImageCheck> TestAsync(ImageManifest manifest, IProgress<ulong>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(manifest);
        return Task.Run(() => new ImageReader(_objects, manifest).CheckAsync(Describe(manifest.Name, manifest.Generation), progress, cancellation), cancellation);
    }

    /// <summary>Removes a generation of an image, or all of them. The chunks go with the next collections.</summary>
    /// <param name="name">The name.</param>
    /// <param name="generation">The generation; null for all.</param>
    /// <param name="cancellation">Abandons it.</param>
    /// <exception cref="GuestMemoryException">ImageNotFound; StoreFailed, StoreDenied.</exception>
    public async Task RemoveAsync(string name, ulong? generation = null, CancellationToken cancellation = default)
    {
        RequireName(name);
        var all = (await ListManifestsAsync(name, cancellation)).Select(static each => each.Generation).ToList();
        if (all.Count == 0 || (generation is { } one && !all.Contains(one)))
            throw new GuestMemoryException(GuestMemoryError.ImageNotFound, $"The store {Location} has no image {(generation is { } asked ? $"'{name}' of generation {asked}" : $"'{name}'")}.");
        var rest = generation is null ? [] : all.Where(each => each != generation).ToList();
        // The name first: it must never stand for what is not there.
        while (await ReadLatestAsync(name, cancellation) is { Generation: > 0 } latest && !rest.Contains(latest.Generation) && all.Contains(latest.Generation))
        {
            // A later one is not announced yet; its upload does that.
            var former = rest.Where(each => each < latest.Generation).DefaultIfEmpty().Max();
            if (await _objects.TryReplaceAsync(LatestKey(name), LatestContent(former, latest.Highest), latest.Version, cancellation) is not null) break;
        }

        foreach (var each in all.Except(rest)) await _objects.DeleteAsync(ManifestKey(name, each), cancellation);
        await RepairLatestAsync(name, cancellation);
    }

    /// <summary>
    /// Removes chunks that no image has any more, in two phases: what is found by one collection is removed by a later one, when every upload
    /// that may count on it has ended.
    /// </summary>
    /// <param name="cancellation">Ends it; the next collection goes on.</param>
    /// <exception cref="GuestMemoryException">InvalidImage: a manifest is damaged, and what it names is not known; nothing is removed then. StoreFailed, StoreDenied.</exception>
    public Task<CollectionResult> CollectAsync(CancellationToken cancellation = default) => Task.Run(() => new ImageCollector(this).RunAsync(cancellation), cancellation);

    /// <inheritdoc/>
    public void Dispose() => _objects.Dispose();

    internal static string ManifestKey(string name, ulong generation) => string.Create(CultureInfo.InvariantCulture, $"{Prefix}{name}/{generation:d10}{Suffix}");

    internal string Describe(string name, ulong generation) => string.Create(CultureInfo.InvariantCulture, $"{Location.TrimEnd('/')}/{name}@{generation}");

    internal StoredImage Show(ImageManifest manifest, bool isLatest) => new(Describe(manifest.Name, manifest.Generation), manifest.Name, manifest.Generation, isLatest, manifest.Size, manifest.StoredSize,
        manifest.ChunkSize, manifest.ChunkCount, manifest.UniqueCount, manifest.Created, manifest.Digest.ToString(), manifest.SigningKey?.ToString());

    private async Task<StoredImage?> TryShowAsync(string name, ulong generation, bool isLatest, Action<GuestMemoryException>? failed, CancellationToken cancellation)
    {
        try
        {
            return await TryOpenAsync(name, generation, cancellation) is { } manifest ? Show(manifest, isLatest) : null;
        }
        catch (GuestMemoryException exception) when (failed is not null && exception.Error == GuestMemoryError.InvalidImage)
        {
            failed(exception);
            return null;
        }
    }

    /// <summary>The manifest of a generation; null where there is none.</summary>
    internal async Task<ImageManifest?> TryOpenAsync(string name, ulong generation, CancellationToken cancellation)
    {
        var source = Describe(name, generation);
        if (await _objects.TryReadAsync(ManifestKey(name, generation), ImageManifest.MaxSize, cancellation) is not { } found) return null;
        var manifest = ImageManifest.Read(found.Content, source);
        return manifest.Name == name && manifest.Generation == generation ? manifest
            : throw new GuestMemoryException(GuestMemoryError.InvalidImage, $"{source} is the manifest of '{manifest.Name}', generation {manifest.Generation}: it was put to a place that is not its own.");
    }

    /// <summary>The generations of a name, or of all names, in ascending order.</summary>
    internal async Task<IReadOnlyList<(string Name, ulong Generation)>> ListManifestsAsync(string? name, CancellationToken cancellation)
    {
        var found = new List<(string, ulong)>();
        foreach (var entry in await _objects.ListAsync(name is null ? Prefix : $"{Prefix}{name}/", cancellation))
        {
            var parts = entry.Key[Prefix.Length..].Split('/');
            if (parts.Length == 2 && parts[1].EndsWith(Suffix, StringComparison.Ordinal) && StoreLocation.IsName(parts[0])
                && ulong.TryParse(parts[1].AsSpan(0, parts[1].Length - Suffix.Length), NumberStyles.None, CultureInfo.InvariantCulture, out var generation)) found.Add((parts[0], generation));
        }

        return found;
    }

    /// <summary>What a name stands for (0 for nothing any more) and the highest generation that it ever stood for; null where it never did.</summary>
    internal async Task<(ulong Generation, ulong Highest, string Version)?> ReadLatestAsync(string name, CancellationToken cancellation)
    {
        if (await _objects.TryReadAsync(LatestKey(name), 1 << 10, cancellation) is not { } found) return null;
        var numbers = Encoding.UTF8.GetString(found.Content).Trim().Split(' ');
        return numbers.Length == 2 && ulong.TryParse(numbers[0], NumberStyles.None, CultureInfo.InvariantCulture, out var generation)
            && ulong.TryParse(numbers[1], NumberStyles.None, CultureInfo.InvariantCulture, out var highest) && highest >= generation && highest < ulong.MaxValue ? (generation, highest, found.Version)
            : throw new GuestMemoryException(GuestMemoryError.InvalidImage, $"{LatestKey(name)} in the store {Location} holds no two numbers of generations: '{Encoding.UTF8.GetString(found.Content).Trim()}'.");
    }

    /// <summary>Has a name stand for a generation, unless it stands for a later one.</summary>
    internal async Task SetLatestAsync(string name, ulong generation, CancellationToken cancellation)
    {
        while (true)
        {
            var latest = await ReadLatestAsync(name, cancellation);
            if (latest is { } later && later.Generation >= generation) return;
            if (latest is not { } former ? await _objects.TryCreateAsync(LatestKey(name), LatestContent(generation, generation), cancellation)
                : await _objects.TryReplaceAsync(LatestKey(name), LatestContent(generation, Math.Max(generation, former.Highest)), former.Version, cancellation) is not null) break;
        }

        await RepairLatestAsync(name, cancellation);
    }

    /// <summary>
    /// Has a name that stands for a generation that is not there stand for the one before. A removal and an announcement of a generation do that last, so that the one that
    /// is the last of several sees what all of them did.
    /// </summary>
    private async Task RepairLatestAsync(string name, CancellationToken cancellation)
    {
        while (await ReadLatestAsync(name, cancellation) is { Generation: > 0 } latest)
        {
            var there = (await ListManifestsAsync(name, cancellation)).Select(static each => each.Generation).ToList();
            if (there.Contains(latest.Generation)) return;
            var former = there.Where(each => each < latest.Generation).DefaultIfEmpty().Max();
            if (await _objects.TryReplaceAsync(LatestKey(name), LatestContent(former, latest.Highest), latest.Version, cancellation) is not null) return;
        }
    }

    private static byte[] LatestContent(ulong generation, ulong highest) => Encoding.UTF8.GetBytes(string.Create(CultureInfo.InvariantCulture, $"{generation} {highest}\n"));

    private static string LatestKey(string name) => $"{Prefix}{name}/{Latest}";

    private static void RequireName(string name)
    {
        ArgumentNullException.ThrowIfNull(name);
        if (!StoreLocation.IsName(name))
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"'{name}' cannot be the name of an image: letters, digits, '.', '-' and '_' can, at most 128, the first a letter or a digit.");
    }
}
