using System.Runtime.InteropServices;
using System.Security.Cryptography;

namespace GuestMemory.Core.Store;

/// <summary>A SHA-256, by which a chunk, an object or a manifest is known.</summary>
[StructLayout(LayoutKind.Sequential)]
public readonly record struct ChunkDigest
{
    /// <summary>Its bytes.</summary>
    public const int Size = SHA256.HashSizeInBytes;

    private readonly ulong _first;
    private readonly ulong _second;
    private readonly ulong _third;
    private readonly ulong _fourth;

    /// <param name="bytes">32 bytes.</param>
    public ChunkDigest(ReadOnlySpan<byte> bytes)
    {
        if (bytes.Length != Size) throw new ArgumentException("A SHA-256 has 32 bytes.", nameof(bytes));
        this = MemoryMarshal.Read<ChunkDigest>(bytes);
    }

    /// <summary>The digest of bytes.</summary>
    public static ChunkDigest Of(ReadOnlySpan<byte> content)
    {
        Span<byte> bytes = stackalloc byte[Size];
        SHA256.HashData(content, bytes);
        return new ChunkDigest(bytes);
    }

    /// <summary>Writes the 32 bytes.</summary>
    public void CopyTo(Span<byte> destination) => MemoryMarshal.Write(destination, this);

    // It is random already.

    /// <inheritdoc/>
    public override int GetHashCode() => _first.GetHashCode();

    /// <summary>Lower-case hexadecimal, as sha256sum prints it.</summary>
    public override string ToString()
    {
        Span<byte> bytes = stackalloc byte[Size];
        CopyTo(bytes);
        return Convert.ToHexStringLower(bytes);
    }
}
