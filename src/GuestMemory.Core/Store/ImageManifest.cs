using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;
using GuestMemory.Core.Images;

namespace GuestMemory.Core.Store;

/// <summary>
/// What an image in a store is made of: its regions, and for each of its chunks the digest and the place. docs/image-format.md has the
/// bytes. A manifest that was read is whole: its digest is right, and every number in it lies within its limits.
/// </summary>
public sealed class ImageManifest
{
    /// <summary>The largest manifest, in bytes: that of 16 TiB in chunks of 2 MiB, or of 512 GiB in chunks of 64 KiB.</summary>
    internal const int MaxSize = 512 << 20;

    /// <summary>What a chunk takes of it at most.</summary>
    internal const ulong BytesOfChunk = 49;

    internal const string P256 = "1.2.840.10045.3.1.7";
    internal const int MinChunkSize = 4096;
    internal const int MaxChunkSize = 16 << 20;

    private const uint Version = 2;
    private const int HeaderSize = 16;
    private const int SectionSize = 24;
    private const int InfoSize = 80;
    private const int MaxSections = 64;
    private const uint MustBeKnown = 1;
    private const int SignatureSize = 8 + ChunkDigest.Size + 64;

    private byte[] _bytes = [];
    private int _signedSize;

    internal ImageManifest()
    {
    }

    private enum Section : uint
    {
        Info = 1,
        Regions = 2,
        Packs = 3,
        Chunks = 4,
        Digests = 5,
        PackNumbers = 6,
        Offsets = 7,
        StoredSizes = 8,
        Compressions = 9,
        Record = 10,
    }

    /// <summary>The name of the image.</summary>
    public required string Name { get; init; }

    /// <summary>Which of the images of that name it is, from 1 on.</summary>
    public required ulong Generation { get; init; }

    /// <summary>When it was published.</summary>
    public required DateTimeOffset Created { get; init; }

    /// <summary>The bytes of the memory: the sum of the regions' sizes.</summary>
    public required ulong Size { get; init; }

    /// <summary>The bytes of a chunk: a power of two. The last chunk is as long as what is left.</summary>
    public required int ChunkSize { get; init; }

    /// <summary>The regions, in ascending order of their guest addresses; chunks are cut from them one behind the other.</summary>
    public required IReadOnlyList<ImageRegion> Regions { get; init; }

    /// <summary>The digest of the generation before; all zeros for none.</summary>
    public ChunkDigest Parent { get; init; }

    /// <summary>The digest of the manifest.</summary>
    public ChunkDigest Digest { get; private set; }

    /// <summary>The digest of the public key (its SubjectPublicKeyInfo) that it was signed with; null where it was not signed.</summary>
    public ChunkDigest? SigningKey { get; private set; }

    /// <summary>The chunks, those of zeros included.</summary>
    public int ChunkCount => Chunks.Length;

    /// <summary>The different chunks that are not all zeros.</summary>
    public int UniqueCount => Digests.Length;

    /// <summary>The bytes of the different chunks in the store.</summary>
    public ulong StoredSize => StoredSizes.Aggregate(0UL, static (sum, size) => sum + size);

    internal ChunkDigest[] Packs { get; init; } = [];

    /// <summary>For each chunk 0 where it is all zeros, else the number of a different chunk, from 1 on.</summary>
    internal uint[] Chunks { get; init; } = [];

    internal ChunkDigest[] Digests { get; init; } = [];

    internal uint[] PackNumbers { get; init; } = [];

    internal uint[] Offsets { get; init; } = [];

    internal uint[] StoredSizes { get; init; } = [];

    internal byte[] Compressions { get; init; } = [];

    /// <summary>The touch record of the image; empty for none.</summary>
    internal byte[] Record { get; init; } = [];

    /// <summary>The manifest as an object of a store.</summary>
    internal ReadOnlyMemory<byte> Bytes => _bytes;

    /// <summary>The bytes of a chunk: those of the last one may be fewer.</summary>
    internal int SizeOf(int chunk) => (int)Math.Min((ulong)ChunkSize, Size - ((ulong)chunk * (ulong)ChunkSize));

    /// <summary>Where a different chunk is, by its number from 0 on.</summary>
    internal ChunkPlace PlaceOf(int unique) => new(Packs[PackNumbers[unique]], Offsets[unique], StoredSizes[unique], (ImageCompression)Compressions[unique]);

    /// <summary>Makes the bytes of a new manifest.</summary>
    /// <param name="key">Signs it; null for no signature.</param>
    internal void Seal(ECDsa? key)
    {
        var name = Encoding.UTF8.GetBytes(Name);
        var info = new byte[InfoSize + name.Length];
        BinaryPrimitives.WriteUInt64LittleEndian(info, Size);
        BinaryPrimitives.WriteUInt64LittleEndian(info.AsSpan(8), Generation);
        BinaryPrimitives.WriteInt64LittleEndian(info.AsSpan(16), Created.ToUnixTimeMilliseconds());
        BinaryPrimitives.WriteInt32LittleEndian(info.AsSpan(24), ChunkSize);
        BinaryPrimitives.WriteInt32LittleEndian(info.AsSpan(28), Chunks.Length);
        BinaryPrimitives.WriteInt32LittleEndian(info.AsSpan(32), Digests.Length);
        BinaryPrimitives.WriteInt32LittleEndian(info.AsSpan(36), Packs.Length);
        Parent.CopyTo(info.AsSpan(40));
        BinaryPrimitives.WriteInt32LittleEndian(info.AsSpan(72), Regions.Count);
        BinaryPrimitives.WriteInt32LittleEndian(info.AsSpan(76), name.Length);
        name.CopyTo(info, InfoSize);
        var regions = new ulong[Regions.Count * 2];
        for (var i = 0; i < Regions.Count; i++) (regions[2 * i], regions[(2 * i) + 1]) = (Regions[i].GuestAddress, Regions[i].Size);
        List<(Section Type, ReadOnlyMemory<byte> Content)> sections =
        [
            (Section.Info, info), (Section.Regions, ToBytes<ulong>(regions)), (Section.Packs, ToBytes<ChunkDigest>(Packs)),
            (Section.Chunks, ToBytes<uint>(Chunks)), (Section.Digests, ToBytes<ChunkDigest>(Digests)), (Section.PackNumbers, ToBytes<uint>(PackNumbers)),
            (Section.Offsets, ToBytes<uint>(Offsets)), (Section.StoredSizes, ToBytes<uint>(StoredSizes)), (Section.Compressions, Compressions),
        ];
        if (Record.Length > 0) sections.Add((Section.Record, Record));

        var length = HeaderSize + (sections.Count * SectionSize);
        foreach (var (_, content) in sections) length = checked(Align(length) + content.Length);
        var bytes = new byte[length + ChunkDigest.Size + (key is null ? 0 : SignatureSize)];
        "GMIMAGE2"u8.CopyTo(bytes);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(8), Version);
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(12), sections.Count);
        var at = HeaderSize + (sections.Count * SectionSize);
        for (var i = 0; i < sections.Count; i++)
        {
            at = Align(at);
            var entry = bytes.AsSpan(HeaderSize + (i * SectionSize), SectionSize);
            BinaryPrimitives.WriteUInt32LittleEndian(entry, (uint)sections[i].Type);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[4..], sections[i].Type == Section.Record ? 0 : MustBeKnown);
            BinaryPrimitives.WriteInt64LittleEndian(entry[8..], at);
            BinaryPrimitives.WriteInt64LittleEndian(entry[16..], sections[i].Content.Length);
            sections[i].Content.Span.CopyTo(bytes.AsSpan(at));
            at += sections[i].Content.Length;
        }

        Digest = ChunkDigest.Of(bytes.AsSpan(0, length));
        Digest.CopyTo(bytes.AsSpan(length));
        (_bytes, _signedSize) = (bytes, length);
        if (key is null) return;
        var signature = bytes.AsSpan(length + ChunkDigest.Size);
        "GMSIGN01"u8.CopyTo(signature);
        SigningKey = KeyId(key);
        SigningKey.Value.CopyTo(signature[8..]);
        key.SignHash(bytes.AsSpan(length, ChunkDigest.Size), DSASignatureFormat.IeeeP1363FixedFieldConcatenation).CopyTo(signature[(8 + ChunkDigest.Size)..]);
    }

    /// <summary>Whether one of these keys has signed it.</summary>
    internal bool IsSignedBy(IEnumerable<ECDsa> keys)
    {
        if (SigningKey is not { } id) return false;
        Span<byte> digest = stackalloc byte[ChunkDigest.Size];
        Digest.CopyTo(digest);
        foreach (var key in keys)
        {
            if (KeyId(key) == id && key.VerifyHash(digest, _bytes.AsSpan(_signedSize + ChunkDigest.Size + 8 + ChunkDigest.Size, 64), DSASignatureFormat.IeeeP1363FixedFieldConcatenation)) return true;
        }

        return false;
    }

    /// <summary>The digest by which a key is known.</summary>
    internal static ChunkDigest KeyId(ECDsa key) => ChunkDigest.Of(key.ExportSubjectPublicKeyInfo());

    /// <summary>Reads and checks a manifest; nothing of it is believed before.</summary>
    /// <param name="bytes">The object. It becomes the manifest's.</param>
    /// <param name="source">What the error is to name.</param>
    /// <exception cref="GuestMemoryException">InvalidImage.</exception>
    internal static ImageManifest Read(byte[] bytes, string source)
    {
        if (bytes.Length < HeaderSize + ChunkDigest.Size || !bytes.AsSpan(0, 8).SequenceEqual("GMIMAGE2"u8)) throw Invalid(source, "it does not begin as one");
        if (BinaryPrimitives.ReadUInt32LittleEndian(bytes.AsSpan(8)) is var version and not Version) throw Invalid(source, $"its version is {version}, and this program knows {Version}");
        var count = BinaryPrimitives.ReadUInt32LittleEndian(bytes.AsSpan(12));
        if (count > MaxSections) throw Invalid(source, $"it has {count} sections");
        var end = HeaderSize + ((int)count * SectionSize);
        var sections = new Dictionary<Section, (int Offset, int Length)>();
        if (end > bytes.Length) throw Invalid(source, "it is too short");
        for (var i = 0; i < count; i++)
        {
            var entry = bytes.AsSpan(HeaderSize + (i * SectionSize), SectionSize);
            var type = (Section)BinaryPrimitives.ReadUInt32LittleEndian(entry);
            var flags = BinaryPrimitives.ReadUInt32LittleEndian(entry[4..]);
            var offset = BinaryPrimitives.ReadUInt64LittleEndian(entry[8..]);
            var length = BinaryPrimitives.ReadUInt64LittleEndian(entry[16..]);
            // They come one behind the other, each at the next multiple of 8.
            if (offset != (ulong)Align(end) || length > (ulong)bytes.Length || offset + length > (ulong)(bytes.Length - ChunkDigest.Size)) throw Invalid(source, "a section is not where it must be");
            if ((flags & MustBeKnown) != 0 && !Enum.IsDefined(type)) throw Invalid(source, $"it has a section of type {(uint)type}, which this program does not know. A newer one does");
            if (!sections.TryAdd(type, ((int)offset, (int)length))) throw Invalid(source, "a section comes twice");
            end = (int)(offset + length);
        }

        var signed = ReadSignature(bytes, end, source);
        var info = bytes.AsSpan(Of(Section.Info).Offset, Of(Section.Info).Length);
        if (info.Length < InfoSize) throw Invalid(source, "its first section is too short");
        var nameLength = BinaryPrimitives.ReadInt32LittleEndian(info[76..]);
        if (nameLength != info.Length - InfoSize) throw Invalid(source, "its name is cut off");
        var regions = MemoryMarshal.Cast<byte, ulong>(Bytes(Section.Regions, BinaryPrimitives.ReadInt32LittleEndian(info[72..]), 16));
        var ranges = new ImageRegion[regions.Length / 2];
        for (var i = 0; i < ranges.Length; i++) ranges[i] = new ImageRegion(regions[2 * i], regions[(2 * i) + 1]);
        var chunks = BinaryPrimitives.ReadInt32LittleEndian(info[28..]);
        var unique = BinaryPrimitives.ReadInt32LittleEndian(info[32..]);
        var packs = BinaryPrimitives.ReadInt32LittleEndian(info[36..]);
        var manifest = new ImageManifest
        {
            Name = Encoding.UTF8.GetString(info[InfoSize..]),
            Generation = BinaryPrimitives.ReadUInt64LittleEndian(info[8..]),
            Created = ReadTime(BinaryPrimitives.ReadInt64LittleEndian(info[16..]), source),
            Size = BinaryPrimitives.ReadUInt64LittleEndian(info),
            ChunkSize = BinaryPrimitives.ReadInt32LittleEndian(info[24..]),
            Parent = new ChunkDigest(info.Slice(40, ChunkDigest.Size)),
            Regions = ranges,
            Packs = [.. MemoryMarshal.Cast<byte, ChunkDigest>(Bytes(Section.Packs, packs, ChunkDigest.Size))],
            Chunks = [.. MemoryMarshal.Cast<byte, uint>(Bytes(Section.Chunks, chunks, 4))],
            Digests = [.. MemoryMarshal.Cast<byte, ChunkDigest>(Bytes(Section.Digests, unique, ChunkDigest.Size))],
            PackNumbers = [.. MemoryMarshal.Cast<byte, uint>(Bytes(Section.PackNumbers, unique, 4))],
            Offsets = [.. MemoryMarshal.Cast<byte, uint>(Bytes(Section.Offsets, unique, 4))],
            StoredSizes = [.. MemoryMarshal.Cast<byte, uint>(Bytes(Section.StoredSizes, unique, 4))],
            Compressions = [.. Bytes(Section.Compressions, unique, 1)],
            Record = sections.TryGetValue(Section.Record, out var record) ? bytes[record.Offset..(record.Offset + record.Length)] : [],
            Digest = new ChunkDigest(bytes.AsSpan(end, ChunkDigest.Size)),
            SigningKey = signed,
            _bytes = bytes,
            _signedSize = end,
        };
        if (manifest.FindContradiction() is { } why) throw Invalid(source, why);
        return manifest;

        (int Offset, int Length) Of(Section type) => sections.TryGetValue(type, out var place) ? place : throw Invalid(source, $"its section {type} is missing");

        ReadOnlySpan<byte> Bytes(Section type, int items, int size)
        {
            var (offset, length) = Of(type);
            return items >= 0 && (long)items * size == length ? bytes.AsSpan(offset, length) : throw Invalid(source, $"its section {type} does not have {items} entries");
        }
    }

    private static ChunkDigest? ReadSignature(byte[] bytes, int end, string source)
    {
        var rest = bytes.Length - end - ChunkDigest.Size;
        if (rest is not (0 or SignatureSize)) throw Invalid(source, "it does not end where it must");
        if (new ChunkDigest(bytes.AsSpan(end, ChunkDigest.Size)) != ChunkDigest.Of(bytes.AsSpan(0, end))) throw Invalid(source, "its digest is wrong: it is damaged");
        if (rest == 0) return null;
        var signature = bytes.AsSpan(end + ChunkDigest.Size);
        return signature[..8].SequenceEqual("GMSIGN01"u8) ? new ChunkDigest(signature.Slice(8, ChunkDigest.Size)) : throw Invalid(source, "its signature is of an unknown kind");
    }

    private static DateTimeOffset ReadTime(long milliseconds, string source)
    {
        try
        {
            return DateTimeOffset.FromUnixTimeMilliseconds(milliseconds);
        }
        catch (ArgumentOutOfRangeException)
        {
            throw Invalid(source, "its time is none");
        }
    }

    /// <summary>What its numbers say against each other; null where nothing.</summary>
    private string? FindContradiction()
    {
        if (ChunkSize is < MinChunkSize or > MaxChunkSize || !System.Numerics.BitOperations.IsPow2(ChunkSize)) return $"its chunks cannot have {ChunkSize} bytes";
        if (Generation == 0 || !StoreLocation.IsName(Name)) return "its name or its generation is none";
        if (Regions.Count > Images.ImageMap.MaxRegions) return $"it has {Regions.Count} regions";
        ulong sum = 0;
        ulong next = 0;
        for (var i = 0; i < Regions.Count; i++)
        {
            var region = Regions[i];
            if (region.Size == 0 || region.GuestAddress < next || region.Size - 1 > ulong.MaxValue - region.GuestAddress) return "its regions overlap, or are not in order";
            if (region.GuestAddress + (region.Size - 1) == ulong.MaxValue && i < Regions.Count - 1) return "its regions overlap, or are not in order";
            next = unchecked(region.GuestAddress + region.Size);
            if (region.Size > ulong.MaxValue - sum) return "its regions are larger than any memory";
            sum += region.Size;
        }

        if (Size == 0 || sum != Size) return $"its regions do not have {Size} bytes";
        if (((Size - 1) / (ulong)ChunkSize) + 1 != (ulong)Chunks.Length) return $"{Chunks.Length} chunks of {ChunkSize} bytes are not {Size} bytes";
        foreach (var chunk in Chunks)
        {
            if (chunk > Digests.Length) return "it names a chunk that it does not have";
        }

        // One content has one length.
        if (Size % (ulong)ChunkSize != 0 && Chunks[^1] is var last and not 0 && Array.IndexOf(Chunks, last) < Chunks.Length - 1) return "its last chunk, which is shorter, is another one, too";
        for (var i = 0; i < Digests.Length; i++)
        {
            if (PackNumbers[i] >= Packs.Length) return "a chunk is in a pack that it does not name";
            var compression = (ImageCompression)Compressions[i];
            if (!Enum.IsDefined(compression)) return $"a compression ({Compressions[i]}) is not known";
            if (StoredSizes[i] == 0 || StoredSizes[i] > ChunkSize || StoredSizes[i] > uint.MaxValue - Offsets[i]) return "a chunk is not where it could be";
        }

        return null;
    }

    private static GuestMemoryException Invalid(string source, string why) =>
        new(GuestMemoryError.InvalidImage, $"{source} is not a whole manifest of an image: {why}.");

    private static int Align(int at) => (at + 7) & ~7;

    private static ReadOnlyMemory<byte> ToBytes<T>(T[] items)
        where T : struct => MemoryMarshal.AsBytes<T>(items).ToArray();
}
