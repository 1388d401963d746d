using System.Buffers.Binary;
using System.IO.Compression;
using Snappier;

namespace GuestMemory.Core.Images;

/// <summary>
/// Writes AVML images, version 2 (microsoft/avml, <c>src/image.rs</c>): each region in blocks of at most 16 MiB. A block has LiME's header with the magic 0x4C4D5641 and the version 2, its bytes
/// as a framed Snappy stream, and the length of that stream (8). A block of zeros is left out, as AVML does, but for the first and the last block of a region: so
/// the addresses of each region are in the file. No region ends with a block of 16 MiB, behind which a gap of such blocks would look left out: the last one is cut in two.
/// </summary>
public static class AvmlWriter
{
    internal const uint Magic = 0x4C4D5641;
    internal const ulong BlockSize = 16 << 20;

    /// <summary>Writes the whole memory; the file is made beside its place and renamed when it is complete.</summary>
    /// <param name="memory">The memory.</param>
    /// <param name="path">The file to make.</param>
    /// <param name="overwrite">Whether a file that is there may be replaced.</param>
    /// <param name="digest">Whether to compute the file's SHA-256, and to write it beside the file (FILE.sha256).</param>
    /// <param name="progress">Told the bytes of memory done.</param>
    /// <param name="cancellation">Ends the export; what was written is removed.</param>
    /// <exception cref="GuestMemoryException">FileExists, NotAFile, TargetIsMapped; DiskFull; PageNotAccessible.</exception>
    public static ImageInfo Write(GuestMemoryMmap memory, string path, bool overwrite, bool digest = false, Action<ulong>? progress = null, CancellationToken cancellation = default) =>
        WholeImage.Write(memory, path, ImageFormat.Avml, overwrite, digest, isSparse: false, progress, cancellation, (output, reader) =>
        {
            using var frames = new MemoryStream();
            Block Begin(GuestMemoryRegion region, ulong at)
            {
                var left = region.Size - (at - region.GuestAddress);
                return new Block(output, frames, at, left == BlockSize ? BlockSize / 2 : Math.Min(BlockSize, left), isKept: at == region.GuestAddress || left <= BlockSize);
            }

            foreach (var region in memory.Regions)
            {
                Block? block = null;
                reader.Copy(region, (at, piece) =>
                {
                    while (!piece.IsEmpty)
                    {
                        block ??= Begin(region, at);
                        var part = (int)Math.Min((ulong)piece.Length, block.Left);
                        block.Append(piece[..part]);
                        piece = piece[part..];
                        at += (ulong)part;
                        if (block.Left > 0) continue;
                        block.Finish();
                        block = null;
                    }
                });
            }
        });

    /// <summary>One block; what it has is written as it comes, from the first byte on that is not zero.</summary>
    private sealed class Block(ImageOutput output, MemoryStream frames, ulong address, ulong size, bool isKept)
    {
        private const int ZeroPart = 1 << 16;
        private static readonly byte[] s_zeros = new byte[ZeroPart];
        private SnappyStream? _snappy;
        private ulong _taken;
        private ulong _length;

        public ulong Left => size - _taken;

        public void Append(ReadOnlySpan<byte> data)
        {
            if (_snappy is null && !isKept && !data.ContainsAnyExcept((byte)0))
            {
                _taken += (ulong)data.Length;
                return;
            }

            if (_snappy is null) Begin();
            _snappy!.Write(data);
            _taken += (ulong)data.Length;
            Drain(PagesOf(data));
        }

        public void Finish()
        {
            if (_snappy is null) return;
            _snappy.Dispose();
            Drain(0);
            Span<byte> length = stackalloc byte[sizeof(ulong)];
            BinaryPrimitives.WriteUInt64LittleEndian(length, _length);
            output.Append(length);
        }

        private void Begin()
        {
            Span<byte> header = stackalloc byte[LimeWriter.HeaderSize];
            LimeWriter.WriteHeader(header, Magic, version: 2, address, address + (size - 1));
            output.Append(header);
            _snappy = new SnappyStream(frames, CompressionMode.Compress, leaveOpen: true);
            for (var zeros = _taken; zeros > 0;)
            {
                var part = (int)Math.Min(zeros, ZeroPart);
                _snappy.Write(s_zeros.AsSpan(0, part));
                zeros -= (ulong)part;
            }
        }

        private void Drain(long pages)
        {
            output.Append(frames.GetBuffer().AsSpan(0, (int)frames.Length), pages);
            _length += (ulong)frames.Length;
            frames.SetLength(0);
        }

        private static long PagesOf(ReadOnlySpan<byte> data)
        {
            long pages = 0;
            for (var at = 0; at < data.Length; at += (int)HostPage.Size)
            {
                if (data[at..Math.Min(at + (int)HostPage.Size, data.Length)].ContainsAnyExcept((byte)0)) pages++;
            }

            return pages;
        }
    }
}
