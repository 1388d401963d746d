using GuestMemory.Core.Store;

namespace GuestMemory.Core.Tests;

/// <summary>A store in a folder, and memory to publish; gone afterwards.</summary>
public sealed class StoreFixture : IDisposable
{
    public const int Chunk = 16 << 10;

    private readonly TestFolder _folder = new();
    private readonly List<GuestMemoryMmap> _memories = [];

    public StoreFixture() => Images = ImageStore.Open(Root);

    public ImageStore Images { get; }

    public string Root => _folder["store"];

    public string this[string name] => _folder[name];

    /// <summary>Memory whose chunks hold the numbers that are given, each a content of its own; 0 is zeros.</summary>
    public GuestMemoryMmap Memory(params int[] chunks) => Memory(chunks, chunks.Length * Chunk);

    public GuestMemoryMmap Memory(int[] chunks, int size, params (ulong Address, ulong Size)[] regions)
    {
        var memory = GuestMemoryMmap.FromRanges((regions.Length == 0 ? [(0UL, (ulong)size)] : regions).Select(static region => (new GuestAddress(region.Address), region.Size)));
        lock (_memories) _memories.Add(memory);
        var content = Content(chunks, size);
        var at = 0;
        foreach (var region in memory.Regions)
        {
            memory.WriteExact(new GuestAddress(region.GuestAddress), content.AsSpan(at, (int)region.Size));
            at += (int)region.Size;
        }

        return memory;
    }

    public static byte[] Content(int[] chunks, int size)
    {
        var content = new byte[size];
        for (var i = 0; i < chunks.Length; i++)
        {
            var chunk = content.AsSpan(i * Chunk, Math.Min(Chunk, size - (i * Chunk)));
            // Half of a chunk packs well.
            if (chunks[i] != 0) new Random(chunks[i]).NextBytes(chunk[..(chunk.Length / 2)]);
        }

        return content;
    }

    public Task<StoredImage> Publish(GuestMemoryMmap memory, string name = "web", ImageCompression compression = ImageCompression.LZ4) =>
        Images.PublishAsync(memory, name, new PublishOptions { ChunkSize = Chunk, Compression = compression });

    public async Task<byte[]> Load(string name = "web", ulong? generation = null)
    {
        var path = _folder[Guid.NewGuid().ToString("N")];
        await Images.SaveAsync(await Images.OpenAsync(name, generation), path);
        var content = await File.ReadAllBytesAsync(path);
        File.Delete(path);
        return content;
    }

    public string[] Packs() => Directory.Exists(Path.Combine(Root, "packs")) ? Directory.GetFiles(Path.Combine(Root, "packs"), "*", SearchOption.AllDirectories) : [];

    public void Dispose()
    {
        Images.Dispose();
        foreach (var region in _memories.SelectMany(static memory => memory.Regions)) region.Dispose();
        _folder.Dispose();
    }
}
