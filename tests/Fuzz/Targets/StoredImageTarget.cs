using GuestMemory.Core;
using GuestMemory.Core.Store;

namespace GuestMemory.Fuzz.Targets;

/// <summary>A manifest, whose digest is put right; or a chunk that is to be unpacked.</summary>
internal static class StoredImageTarget
{
    public static void Run(byte[] input)
    {
        if (input.Length == 0) return;
        if (input[0] != 0) Unpack((ImageCompression)(input[0] % 3), input.AsSpan(1));
        else ReadManifest(input[1..]);
    }

    private static void ReadManifest(byte[] content)
    {
        var bytes = new byte[content.Length + ChunkDigest.Size];
        content.CopyTo(bytes, 0);
        ChunkDigest.Of(content).CopyTo(bytes.AsSpan(content.Length));
        if (!Check.TryParse(() => ImageManifest.Read(bytes, "it"), out var manifest, GuestMemoryError.InvalidImage)) return;
        Check.Same(manifest.Size, (ulong)Enumerable.Range(0, manifest.ChunkCount).Sum(chunk => (long)manifest.SizeOf(chunk)), "the bytes of the chunks");
        Check.Same(manifest.Size, manifest.Regions.Aggregate(0UL, static (sum, region) => sum + region.Size), "the bytes of the regions");
        Check.True(manifest.Chunks.All(chunk => chunk <= manifest.UniqueCount), "a chunk is none of the different ones");
        for (var i = 0; i < manifest.UniqueCount; i++) Check.True(manifest.PlaceOf(i) is { Stored: > 0 } place && place.Stored <= manifest.ChunkSize, "a chunk has no place");
        Check.True(manifest.SigningKey is null && !manifest.IsSignedBy([]), "nobody signed it");
    }

    private static void Unpack(ImageCompression compression, ReadOnlySpan<byte> packed)
    {
        if (packed.Length < 2) return;
        // What lies around the chunk must stay.
        var room = new byte[(packed[0] | packed[1] << 8) + 64];
        room.AsSpan().Fill(0xa5);
        ImageCodec.TryUnpack(compression, packed[2..], room.AsSpan(32, room.Length - 64));
        Check.True(!room.AsSpan(0, 32).ContainsAnyExcept((byte)0xa5) && !room.AsSpan(room.Length - 32).ContainsAnyExcept((byte)0xa5), "bytes around the chunk were written");
    }
}
