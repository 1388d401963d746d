using System.Security.Cryptography;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Images;

/// <summary>A new file that is written from its begin to its end, and its SHA-256. The file stays the caller's.</summary>
internal sealed class ImageOutput(SafeFileHandle file, bool digest) : IDisposable
{
    private readonly RawImage.PageWriter _pages = new(file);
    private readonly byte[] _zeros = new byte[HostPage.Size];
    private IncrementalHash? _hash = digest ? IncrementalHash.CreateHash(HashAlgorithmName.SHA256) : null;
    private ulong _bytes;
    private long _compressedPages;

    /// <summary>Where in the file the next byte comes to lie.</summary>
    public ulong Position { get; private set; }

    /// <summary>The bytes in the file that are not holes, and the pages of memory among them.</summary>
    public (ulong Bytes, long Pages) Written => (_bytes + _pages.Written.Bytes, _compressedPages + _pages.Written.Pages);

    /// <summary>Writes bytes, which stand for so many pages of memory.</summary>
    public void Append(ReadOnlySpan<byte> data, long pages = 0)
    {
        RandomAccess.Write(file, data, (long)Position);
        _hash?.AppendData(data);
        _bytes += (ulong)data.Length;
        _compressedPages += pages;
        Position += (ulong)data.Length;
    }

    /// <summary>Writes memory: pages of zeros become holes.</summary>
    public void AppendPages(ReadOnlySpan<byte> data)
    {
        _pages.WriteNonZero(data, Position);
        _hash?.AppendData(data);
        Position += (ulong)data.Length;
    }

    /// <summary>Leaves a hole of less than a page, up to a multiple of a page.</summary>
    public void Align()
    {
        var size = (int)(HostPage.RoundUp(Position, HostPage.Size) - Position);
        _hash?.AppendData(_zeros, 0, size);
        Position += (ulong)size;
    }

    /// <summary>Leaves room that is filled later, by <see cref="Fill"/>; the digest is then of what the file has at the end.</summary>
    public void Reserve(ulong size)
    {
        _hash?.Dispose();
        _hash = null;
        Position += size;
    }

    /// <summary>Writes into room that was left.</summary>
    public void Fill(ReadOnlySpan<byte> data, ulong offset)
    {
        RandomAccess.Write(file, data, (long)offset);
        _bytes += (ulong)data.Length;
    }

    /// <summary>Gives the file its length, and the digest in lower-case hexadecimal; null where none was asked for.</summary>
    public string? Finish(CancellationToken cancellation)
    {
        // What ends with a hole is too short.
        if ((ulong)RandomAccess.GetLength(file) < Position) RandomAccess.SetLength(file, (long)Position);
        return _hash is not null ? Convert.ToHexStringLower(_hash.GetHashAndReset())
            : digest ? RawImage.DigestOf(file, Position, cancellation) : null;
    }

    public void Dispose() => _hash?.Dispose();
}
