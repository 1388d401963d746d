using System.Buffers;
using GuestMemory.Core.Images;

namespace GuestMemory.Core.Store;

/// <summary>Reads the chunks of an image, and checks each. For any thread.</summary>
internal sealed class ImageReader(ObjectStore store, ImageManifest manifest)
{
    // One request reads neighbours, up to so many bytes.
    private const int MaxRead = 4 << 20;
    private const int Readers = 4;

    private readonly int[] _sizes = SizesOf(manifest);

    public ImageManifest Manifest => manifest;

    /// <summary>Reads a chunk.</summary>
    /// <param name="chunk">Its number, from 0 on.</param>
    /// <param name="target">As long as the chunk.</param>
    /// <exception cref="GuestMemoryException">InvalidImage: it is damaged. ObjectNotFound, StoreFailed, StoreDenied.</exception>
    public void Read(int chunk, Span<byte> target)
    {
        if (manifest.Chunks[chunk] == 0)
        {
            target.Clear();
            return;
        }

        var unique = (int)manifest.Chunks[chunk] - 1;
        var place = manifest.PlaceOf(unique);
        var rented = ArrayPool<byte>.Shared.Rent((int)place.Stored);
        try
        {
            var stored = rented.AsMemory(0, (int)place.Stored);
            store.ReadAsync(ChunkPack.KeyOf(place.Pack), place.Offset, stored).AsTask().GetAwaiter().GetResult();
            if (Unpack(unique, stored.Span, target) is { } why) throw Damaged(why);
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(rented);
        }
    }

    public ImageInfo Save(string path, bool overwrite, IProgress<ulong>? progress, CancellationToken cancellation)
    {
        // In the order of the memory, so that each different chunk may come several times.
        var chunks = Enumerable.Range(0, manifest.ChunkCount).Where(chunk => manifest.Chunks[chunk] != 0).ToArray();
        ulong done = 0;
        foreach (var chunk in Enumerable.Range(0, manifest.ChunkCount)) done += manifest.Chunks[chunk] == 0 ? (ulong)manifest.SizeOf(chunk) : 0;
        var (bytes, pages) = RawImage.WriteBeside(path, manifest.Size, overwrite, file =>
        {
            var written = (Bytes: 0L, Pages: 0L);
            ReadAllAsync(Array.ConvertAll(chunks, chunk => (int)manifest.Chunks[chunk] - 1), (at, plain) =>
            {
                var output = new RawImage.PageWriter(file);
                output.WriteNonZero(plain, (ulong)chunks[at] * (ulong)manifest.ChunkSize);
                Interlocked.Add(ref written.Bytes, (long)output.Written.Bytes);
                Interlocked.Add(ref written.Pages, output.Written.Pages);
                progress?.Report(Interlocked.Add(ref done, (ulong)plain.Length));
            }, static (_, why) => throw why, cancellation).GetAwaiter().GetResult();
            return ((ulong)written.Bytes, written.Pages);
        }, cancellation);
        return new ImageInfo(path, ImageFormat.Raw, manifest.Size, bytes, pages, null);
    }

    public async Task<ImageCheck> CheckAsync(string location, IProgress<ulong>? progress, CancellationToken cancellation)
    {
        ulong done = 0;
        var errors = new SortedDictionary<int, string>();
        await ReadAllAsync([.. Enumerable.Range(0, manifest.UniqueCount)], (_, plain) => progress?.Report(Interlocked.Add(ref done, (ulong)plain.Length)), (at, why) =>
        {
            lock (errors) errors[at] = why.Message;
        }, cancellation);
        return new ImageCheck(location, manifest.UniqueCount, _sizes.Aggregate(0UL, static (sum, size) => sum + (ulong)size), [.. errors.Values]);
    }

    /// <summary>Reads different chunks, several requests at once, and neighbours in a pack by one.</summary>
    /// <param name="uniques">The numbers of the different chunks, from 0 on, in the order in which they are best read.</param>
    /// <param name="use">Given a chunk that is right, and its place in the list; called by several threads.</param>
    /// <param name="failed">Given one that is not, or cannot be had; called by several threads.</param>
    /// <param name="cancellation">Ends it.</param>
    private Task ReadAllAsync(int[] uniques, Action<int, ReadOnlySpan<byte>> use, Action<int, GuestMemoryException> failed, CancellationToken cancellation) =>
        Parallel.ForEachAsync(Group(uniques), new ParallelOptions { MaxDegreeOfParallelism = Readers, CancellationToken = cancellation }, async (group, token) =>
        {
            var first = manifest.PlaceOf(uniques[group.From]);
            var last = manifest.PlaceOf(uniques[group.To - 1]);
            var stored = new byte[last.Offset + last.Stored - first.Offset];
            var target = new byte[manifest.ChunkSize];
            try
            {
                await store.ReadAsync(ChunkPack.KeyOf(first.Pack), first.Offset, stored, token);
            }
            catch (GuestMemoryException exception) when (exception.Error is GuestMemoryError.ObjectNotFound)
            {
                for (var at = group.From; at < group.To; at++) failed(at, exception);
                return;
            }

            for (var at = group.From; at < group.To; at++)
            {
                var place = manifest.PlaceOf(uniques[at]);
                var plain = target.AsSpan(0, _sizes[uniques[at]]);
                if (Unpack(uniques[at], stored.AsSpan((int)(place.Offset - first.Offset), (int)place.Stored), plain) is { } why) failed(at, Damaged(why));
                else use(at, plain);
            }
        });

    private IEnumerable<(int From, int To)> Group(int[] uniques)
    {
        for (var from = 0; from < uniques.Length;)
        {
            var first = manifest.PlaceOf(uniques[from]);
            var end = first.Offset + first.Stored;
            var to = from + 1;
            for (; to < uniques.Length; to++)
            {
                var next = manifest.PlaceOf(uniques[to]);
                if (next.Pack != first.Pack || next.Offset != end || end + next.Stored - first.Offset > MaxRead) break;
                end += next.Stored;
            }

            yield return (from, to);
            from = to;
        }
    }

    /// <summary>Unpacks a different chunk; what is wrong where something is.</summary>
    private string? Unpack(int unique, ReadOnlySpan<byte> stored, Span<byte> target)
    {
        var place = manifest.PlaceOf(unique);
        if (!ImageCodec.TryUnpack(place.Compression, stored, target)) return $"{Describe(place, target.Length)} cannot be unpacked";
        return ChunkDigest.Of(target) == manifest.Digests[unique] ? null : $"{Describe(place, target.Length)} does not have the digest {manifest.Digests[unique]}";
    }

    private static string Describe(ChunkPlace place, int size) => $"the chunk of {size} bytes at {place.Offset} in {ChunkPack.KeyOf(place.Pack)}";

    private GuestMemoryException Damaged(string why) => new(GuestMemoryError.InvalidImage, $"The image '{manifest.Name}' in the store {store.Location} is damaged: {why}.");

    private static int[] SizesOf(ImageManifest manifest)
    {
        var sizes = new int[manifest.UniqueCount];
        Array.Fill(sizes, manifest.ChunkSize);
        // Only the last chunk may be shorter.
        if (manifest.Chunks[^1] is var last and not 0) sizes[last - 1] = manifest.SizeOf(manifest.ChunkCount - 1);
        return sizes;
    }
}
