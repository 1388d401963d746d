using System.Security.Cryptography;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Images;

/// <summary>
/// Memory images as Firecracker writes them: the dense concatenation of the regions in ascending order of guest addresses,
/// without a header. Gaps between regions are not in the file.
/// </summary>
public static class RawImage
{
    private const int Part = 1 << 20;

    /// <summary>
    /// Writes the whole memory. The file is made beside its place and renamed when it is complete, so that no reader sees half an
    /// image; pages of zeros become holes. Dirty bitmaps stay as they are.
    /// </summary>
    /// <param name="memory">The memory.</param>
    /// <param name="path">The file to make.</param>
    /// <param name="overwrite">Whether a file that is there may be replaced.</param>
    /// <param name="digest">Whether to compute the image's SHA-256, and to write it beside the image (FILE.sha256, as sha256sum does).</param>
    /// <param name="progress">Told the bytes done, about every MiB.</param>
    /// <param name="cancellation">Ends the export; what was written is removed.</param>
    /// <exception cref="GuestMemoryException">FileExists, NotAFile, TargetIsMapped; DiskFull; PageNotAccessible.</exception>
    public static ImageInfo WriteFull(GuestMemoryMmap memory, string path, bool overwrite, bool digest = false, Action<ulong>? progress = null, CancellationToken cancellation = default) =>
        WholeImage.Write(memory, path, ImageFormat.Raw, overwrite, digest, isSparse: true, progress, cancellation, (output, reader) =>
        {
            foreach (var region in memory.Regions) reader.Copy(region, (_, piece) => output.AppendPages(piece));
        });

    /// <summary>
    /// Writes only the dirty pages, at their places in the image: into the base image that is at the path, whose other pages stay
    /// as they are, or into a new sparse file. The marks are taken first; where writing fails they are given back, so that no
    /// change is ever forgotten.
    /// </summary>
    /// <param name="memory">The memory; every region must have a dirty bitmap.</param>
    /// <param name="path">The base image to patch, or the file to make.</param>
    /// <param name="force">Replaces a file of another size by a new sparse file; patches an image that is being served, and a diff that was written after its bits.</param>
    /// <param name="keepDirty">Leaves the marks in the bitmaps.</param>
    /// <param name="progress">Told the bytes written so far.</param>
    /// <param name="cancellation">Ends the export; the marks are given back.</param>
    /// <exception cref="GuestMemoryException">DirtyTrackingOff, LogOfFrontEnd, BaseSizeMismatch, ImageInUse, LayerUntrusted, InvalidImage, NotAFile, TargetIsMapped, DiskFull, PageNotAccessible.</exception>
    public static ImageInfo WriteDirty(GuestMemoryMmap memory, string path, bool force, bool keepDirty = false, Action<ulong>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(memory);
        // Nothing is changed before everything that can be checked was.
        foreach (var region in memory.Regions) region.RequireTracker();
        ImageTarget.RefuseSharedLink(path);
        ImageTarget.RefuseBacking(memory, path);
        if (new FileInfo(path).LinkTarget is not null) path = File.ResolveLinkTarget(path, returnFinalTarget: true)!.FullName;
        var patch = Path.Exists(path) && IsBase(path, memory.Size, force);
        using var opened = patch ? OpenBase(path, force) : null;
        // Where the file is a diff this one is added to it; a base is an image of its own, which has no use for bits.
        var bits = opened is not null ? DirtySidecar.TryLoad(path, opened, memory.Size, force) : HasWholePages(memory) ? new ulong[DirtySidecar.WordCount(memory.Size)] : null;
        if (!patch) DirtySidecar.RequirePlace(path, force);
        var taken = new List<DirtyBitmap>(memory.Regions.Count);
        try
        {
            foreach (var region in memory.Regions) taken.Add(region.GetDirtyBitmap(clear: !keepDirty));
            if (!patch) ImageTarget.RequireSpace(path, DirtySize());
            var (bytes, pages) = opened is not null ? Patch(opened) : WriteBeside(path, memory.Size, overwrite: force, WriteTo, cancellation);
            if (bits is not null) WriteBits(bits);
            return new ImageInfo(path, ImageFormat.Diff, memory.Size, bytes, pages, null);
        }
        catch
        {
            for (var i = 0; !keepDirty && i < taken.Count; i++) taken[i].MarkIn(memory.Regions[i].GetMemory().Bitmap!, memory.Regions[i].GuestAddress);
            throw;
        }

        ulong DirtySize()
        {
            ulong size = 0;
            for (var i = 0; i < taken.Count; i++)
            {
                foreach (var range in taken[i].GetRanges()) size += WholePages(range, memory.Regions[i]).Size;
            }

            return size;
        }

        (ulong Bytes, long Pages) Patch(SafeFileHandle file)
        {
            // It is of what the base was.
            DigestSidecar.Remove(path);
            try
            {
                return WriteTo(file);
            }
            catch (IOException exception) when (ImageTarget.IsDiskFull(exception))
            {
                throw ImageTarget.DiskFull(exception, path);
            }
        }

        void WriteBits(ulong[] words)
        {
            ulong offset = 0;
            for (var i = 0; i < memory.Regions.Count; i++)
            {
                foreach (var range in taken[i].GetRanges())
                {
                    var (from, size) = WholePages(range, memory.Regions[i]);
                    for (var at = offset + from; at < offset + from + size; at += HostPage.Size) words[at / HostPage.Size >> 6] |= 1UL << (int)(at / HostPage.Size & 63);
                }

                offset += memory.Regions[i].Size;
            }

            try
            {
                DirtySidecar.Write(path, memory.Size, words);
            }
            catch when (!patch)
            {
                File.Delete(path);
                throw;
            }
        }

        (ulong Bytes, long Pages) WriteTo(SafeFileHandle file)
        {
            var output = new PageWriter(file);
            ulong offset = 0;
            for (var i = 0; i < memory.Regions.Count; i++)
            {
                var region = memory.Regions[i];
                foreach (var range in taken[i].GetRanges())
                {
                    var (from, size) = WholePages(range, region);
                    var written = WriteDirect(output, region, from, size, offset);
                    if (written == size) continue;
                    Copy(memory, region.GuestAddress + from + written, size - written, (at, buffer) =>
                    {
                        output.Write(buffer, offset + (at - region.GuestAddress));
                        progress?.Invoke(output.Written.Bytes);
                    }, cancellation);
                }

                offset += region.Size;
            }

            Flush(file, cancellation);
            return output.Written;
        }

        // What can be had as a span needs no copy: most runs are short, and a system call each as it is. Gives the bytes that were written.
        ulong WriteDirect(PageWriter output, GuestMemoryRegion region, ulong from, ulong size, ulong offset)
        {
            for (ulong done = 0; done < size;)
            {
                cancellation.ThrowIfCancellationRequested();
                using var lease = region.GetSlice(new MemoryRegionAddress(from + done), Math.Min(Part, size - done)).AsSpan();
                if (lease.Span.IsEmpty) return done;
                output.Write(lease.Span, offset + from + done);
                progress?.Invoke(output.Written.Bytes);
                done += (ulong)lease.Span.Length;
            }

            return size;
        }
    }

    /// <summary>Writes a range of guest memory to a file, made beside its place and renamed when it is complete; pages of zeros become holes.</summary>
    /// <param name="memory">The memory.</param>
    /// <param name="address">The first guest address.</param>
    /// <param name="size">The length in bytes.</param>
    /// <param name="path">The file to make.</param>
    /// <param name="overwrite">Whether a file that is there may be replaced.</param>
    /// <param name="progress">Told the bytes done.</param>
    /// <param name="cancellation">Ends it; what was written is removed.</param>
    /// <exception cref="GuestMemoryException">FileExists; InvalidGuestAddress; PageNotAccessible.</exception>
    public static void WriteRange(GuestMemoryMmap memory, GuestAddress address, ulong size, string path, bool overwrite, Action<ulong>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(memory);
        memory.RequireRange(address, size);
        WriteBeside(path, size, overwrite, file =>
        {
            var output = new PageWriter(file);
            Copy(memory, address.Value, size, (at, buffer) =>
            {
                output.WriteNonZero(buffer, at - address.Value);
                progress?.Invoke(at - address.Value + (ulong)buffer.Length);
            }, cancellation);
            return output.Written;
        }, cancellation);
    }

    /// <summary>The SHA-256 of a file, in lower-case hexadecimal.</summary>
    internal static string DigestOf(SafeFileHandle file, ulong length, CancellationToken cancellation, Action<ulong>? progress = null)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        var buffer = ImageBuffers.Get();
        try
        {
            for (ulong at = 0; at < length;)
            {
                cancellation.ThrowIfCancellationRequested();
                var count = RandomAccess.Read(file, buffer.AsSpan(0, (int)Math.Min((ulong)Part, length - at)), (long)at);
                if (count == 0) throw new EndOfStreamException("The image became shorter while its digest was computed.");
                hash.AppendData(buffer, 0, count);
                at += (ulong)count;
                progress?.Invoke(at);
            }

            return Convert.ToHexStringLower(hash.GetHashAndReset());
        }
        finally
        {
            ImageBuffers.Return(buffer);
        }
    }

    /// <summary>Refuses a place for a new file where one cannot be, or where one is that is to stay.</summary>
    /// <exception cref="GuestMemoryException">FileExists, NotAFile.</exception>
    /// <exception cref="DirectoryNotFoundException">Its folder does not exist.</exception>
    internal static void CheckTarget(string path, bool overwrite)
    {
        if (!overwrite && Path.Exists(path)) throw FileExists(path);
        RequireFile(path);
        // Or the message would name the file that is made beside it.
        if (Path.GetDirectoryName(Path.GetFullPath(path)) is { } folder && !Directory.Exists(folder))
            throw new DirectoryNotFoundException($"The folder {folder} for {Path.GetFileName(path)} does not exist. Create it first ('mkdir -p {folder}').");
    }

    /// <summary>
    /// Refuses a path of anything but a regular file, or of nothing. A file that replaced /dev/null would take that from the whole host;
    /// a pipe that is opened waits for its other end.
    /// </summary>
    /// <param name="path">The path; a symbolic link is followed.</param>
    /// <exception cref="GuestMemoryException">NotAFile.</exception>
    public static void RequireFile(string path)
    {
        if (FileStatus.IsSpecial(path))
            throw new GuestMemoryException(GuestMemoryError.NotAFile, $"{path} is a directory, a device, a pipe or a socket. Give the path of a file.");
    }

    private static bool IsBase(string path, ulong size, bool force)
    {
        RequireFile(path);
        var file = new FileInfo(path);
        if ((ulong)file.Length == size) return true;
        if (force) return false;
        throw new GuestMemoryException(GuestMemoryError.BaseSizeMismatch, $"{path} is {file.Length} bytes long and the memory {size}: it is not an image of this memory. Give another path.");
    }

    /// <summary>The pages of a region that a range has a part of, by their offset in it: a tracker may be finer than pages.</summary>
    private static (ulong Offset, ulong Size) WholePages(AddressRange range, GuestMemoryRegion region)
    {
        var from = range.Address - region.GuestAddress;
        var first = from & ~(HostPage.Size - 1);
        return (first, Math.Min(HostPage.RoundUp(from + range.Size, HostPage.Size), region.Size) - first);
    }

    /// <summary>Whether no page of the image belongs to two regions.</summary>
    private static bool HasWholePages(GuestMemoryMmap memory) => memory.Regions.SkipLast(1).All(static region => region.Size % HostPage.Size == 0);

    /// <summary>Opens an image to be patched, which no handler serves and nobody else writes.</summary>
    /// <exception cref="GuestMemoryException">ImageInUse.</exception>
    internal static SafeFileHandle OpenBase(string path, bool force)
    {
        try
        {
            // A handler holds a shared lock on the image that it serves.
            return File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite, force ? FileShare.ReadWrite : FileShare.None);
        }
        catch (IOException exception) when (exception is not (FileNotFoundException or DirectoryNotFoundException))
        {
            throw new GuestMemoryException(GuestMemoryError.ImageInUse,
                $"{path} is locked: a handler serves it, or another process writes it. A VM that is restored from it would get pages of two snapshots. Stop the handler first.", exception);
        }
    }

    internal static (ulong Bytes, long Pages) WriteBeside(string path, ulong size, bool overwrite, Func<SafeFileHandle, (ulong Bytes, long Pages)> write, CancellationToken cancellation)
    {
        CheckTarget(path, overwrite);
        var written = CompleteFile.Write(path, overwrite, file =>
        {
            if (size > 0) RandomAccess.SetLength(file, (long)size);
            var counts = write(file);
            Flush(file, cancellation);
            return counts;
        });
        DirtySidecar.Remove(path);
        DigestSidecar.Remove(path);
        return written;
    }

    /// <summary>Waits until the disk has it, so that after a crash the name never stands for half a file; who cancels leaves the disk alone with it.</summary>
    internal static void Flush(SafeFileHandle file, CancellationToken cancellation) =>
        Task.Run(() => RandomAccess.FlushToDisk(file), CancellationToken.None).WaitAsync(cancellation).GetAwaiter().GetResult();

    /// <summary>
    /// Reads a range and passes it on with its guest addresses: while one piece is used the next is read. What is passed on is so
    /// little at a time that a caller who cancels need not wait for a slow disk.
    /// </summary>
    internal static void Copy(GuestMemoryMmap memory, ulong address, ulong size, Action<ulong, ReadOnlySpan<byte>> use, CancellationToken cancellation)
    {
        // A read that is abandoned keeps its buffer: then both are left to the garbage collector.
        byte[][] buffers = size > ImageBuffers.Size ? [ImageBuffers.Get(), ImageBuffers.Get()] : [ImageBuffers.Get()];
        var turn = 0;
        var piece = Read(buffers[turn], 0);
        for (ulong done = 0; done < size;)
        {
            var end = done + (ulong)piece.Length;
            turn ^= 1;
            var next = end < size ? Task.Run(() => Read(buffers[turn], end), cancellation) : null;
            for (var at = 0; at < piece.Length; at += Part)
            {
                cancellation.ThrowIfCancellationRequested();
                use(address + done + (ulong)at, piece.Span[at..Math.Min(at + Part, piece.Length)]);
            }

            if (next is not null) piece = next.WaitAsync(cancellation).GetAwaiter().GetResult();
            done = end;
        }

        foreach (var buffer in buffers) ImageBuffers.Return(buffer);

        Memory<byte> Read(byte[] into, ulong from)
        {
            var destination = ImageBuffers.Aligned(into)[..(int)Math.Min(ImageBuffers.Size, size - from)];
            memory.ReadExact(new GuestAddress(address + from), destination, cancellation);
            return destination;
        }
    }

    internal static GuestMemoryException FileExists(string path) =>
        new(GuestMemoryError.FileExists, Directory.Exists(path) ? $"{path} is a directory; give the path of a file." : $"{path} exists. Give another path.");

    /// <summary>Writes pages at their places and counts them.</summary>
    internal sealed class PageWriter(SafeFileHandle file)
    {
        public (ulong Bytes, long Pages) Written { get; private set; }

        public void Write(ReadOnlySpan<byte> data, ulong offset)
        {
            RandomAccess.Write(file, data, (long)offset);
            Written = (Written.Bytes + (ulong)data.Length, Written.Pages + (data.Length + (int)HostPage.Size - 1) / (int)HostPage.Size);
        }

        /// <summary>Writes the runs of pages that are not all zeros; the others stay holes.</summary>
        public void WriteNonZero(ReadOnlySpan<byte> data, ulong offset)
        {
            var page = (int)HostPage.Size;
            for (var at = 0; at < data.Length;)
            {
                var end = at;
                while (end < data.Length && data[end..Math.Min(end + page, data.Length)].ContainsAnyExcept((byte)0)) end = Math.Min(end + page, data.Length);
                if (end > at) Write(data[at..end], offset + (ulong)at);
                at = end + page;
            }
        }
    }
}
