using System.Numerics;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Images;

/// <summary>
/// Writes diffs into their base image, as Firecracker's snapshot-editor does (edit-memory rebase): the pages that a diff has are told by the bits beside it
/// (FILE.dirty) or by its holes, which upstream alone goes by.
/// </summary>
public static class ImageMerge
{
    private const int Piece = 4 << 20;

    /// <summary>Merges into the base itself, or into a new file, which appears at its place when it is complete.</summary>
    /// <param name="basePath">The base image, raw; or a diff, which has the pages of all diffs afterwards. Unless there is a new file it is changed: where that is cut short by a crash or cancelled it
    /// has pages of both, and merging the same diffs again completes it, by force where the base is a diff with bits, which are older than its pages then.</param>
    /// <param name="diffPaths">The diffs, the oldest first.</param>
    /// <param name="outPath">The new file; null: the base.</param>
    /// <param name="force">Replaces a file that is there; writes a base that is being served; takes a diff whose pages cannot be told for sure by its data, and bits that are older than a diff or the base.</param>
    /// <param name="progress">Told the bytes done, and how many there are.</param>
    /// <param name="cancellation">Ends it.</param>
    /// <returns>What was written: the bytes and pages of the diffs.</returns>
    /// <exception cref="GuestMemoryException">
    /// ImageNotFound, NotAFile, FileExists; ImageInUse: a handler serves the base, or it or a diff is written; BaseSizeMismatch: a diff of another length; LayerUntrusted; ImageUnsupported: no raw images;
    /// InvalidImage: damaged bits; ValueNotSupported: no diff, or one that is the base or the new file. Nothing was changed then. DiskFull: a new file is removed, and a base has a part of the pages.
    /// </exception>
    /// <exception cref="IOException">Reading or writing failed; a new file is removed.</exception>
    public static ImageInfo Merge(string basePath, IReadOnlyList<string> diffPaths, string? outPath = null, bool force = false, Action<ulong, ulong>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(basePath);
        ArgumentNullException.ThrowIfNull(diffPaths);
        if (diffPaths.Count == 0) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "No diff was given to be merged.");
        basePath = Resolve(basePath);
        RequireRaw(basePath);
        // Nobody writes it from here on: what is believed of it stays so.
        using var image = outPath is null ? RawImage.OpenBase(basePath, force) : OpenToRead(basePath);
        var length = (ulong)RandomAccess.GetLength(image);
        var ofBase = DirtySidecar.TryLoad(basePath, image, length, force);
        var diffs = new List<Diff>(diffPaths.Count);
        try
        {
            foreach (var path in diffPaths) diffs.Add(Diff.Open(path, basePath, length, force, cancellation));
            if (outPath is not null)
            {
                foreach (var diff in diffs) diff.RequireOther(outPath, "the new file");
            }

            var merged = new Merger(diffs, length, isBaseToldByHoles: ofBase is null, progress, cancellation);
            if (outPath is null) merged.Patch(image, basePath);
            else merged.Write(image, outPath, force);
            var target = outPath ?? basePath;
            if (ofBase is not null) DirtySidecar.Write(target, length, Union(ofBase, diffs));
            return new ImageInfo(target, ofBase is null ? ImageFormat.Raw : ImageFormat.Diff, length, merged.Bytes, merged.Pages, null);
        }
        finally
        {
            foreach (var diff in diffs) diff.Dispose();
        }
    }

    private static string Resolve(string path)
    {
        ImageTarget.RefuseSharedLink(path);
        RawImage.RequireFile(path);
        if (!Path.Exists(path)) throw new GuestMemoryException(GuestMemoryError.ImageNotFound, $"There is no memory image at {path}.");
        return new FileInfo(path).LinkTarget is null ? path : File.ResolveLinkTarget(path, returnFinalTarget: true)!.FullName;
    }

    private static void RequireRaw(string path)
    {
        if (MemoryImage.FindFormat(path) is var format && format is not (ImageFormat.Raw or ImageFormat.MemoryRanges))
            throw new GuestMemoryException(GuestMemoryError.ImageUnsupported, $"{path} is a {format} image. Diffs are merged into a raw image, and are ones themselves.");
    }

    /// <summary>Opens a file that nobody writes, and that nobody who asks is to write meanwhile.</summary>
    /// <exception cref="GuestMemoryException">ImageInUse.</exception>
    private static SafeFileHandle OpenToRead(string path)
    {
        try
        {
            return File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.Read);
        }
        catch (IOException exception) when (exception is not (FileNotFoundException or DirectoryNotFoundException))
        {
            throw new GuestMemoryException(GuestMemoryError.ImageInUse, $"{path} cannot be opened: another process writes it. ({exception.Message})", exception);
        }
    }

    /// <summary>What a file has data for.</summary>
    private static IEnumerable<(ulong Offset, ulong Size)> DataOf(SafeFileHandle file, ulong length, CancellationToken cancellation)
    {
        for (long at = 0; (at = Extents.NextData(file, at, (long)length)) < (long)length;)
        {
            cancellation.ThrowIfCancellationRequested();
            var end = Extents.NextHole(file, at, (long)length);
            if (end <= at) throw new IOException("A file was given a hole while it was merged.");
            yield return ((ulong)at, (ulong)(end - at));
            at = end;
        }
    }

    private static ulong[] Union(ulong[] words, List<Diff> diffs)
    {
        foreach (var diff in diffs) diff.MarkIn(words);
        return words;
    }

    /// <summary>A diff, open for reading, locked against writers that ask.</summary>
    private sealed class Diff : IDisposable
    {
        private readonly Statx _status;

        private Diff(string path, SafeFileHandle file, ulong length, ulong[]? words, Statx status, CancellationToken cancellation)
        {
            Path = path;
            File = file;
            IsToldByHoles = words is null;
            _status = status;
            Ranges = [.. words is null ? DataOf(file, length, cancellation) : ByBits(words, length)];
        }

        public string Path { get; }

        public SafeFileHandle File { get; }

        /// <summary>Whether no bits tell its pages.</summary>
        public bool IsToldByHoles { get; }

        /// <summary>What it has, by offsets.</summary>
        public IReadOnlyList<(ulong Offset, ulong Size)> Ranges { get; }

        public static Diff Open(string path, string basePath, ulong length, bool force, CancellationToken cancellation)
        {
            path = Resolve(path);
            // The base is locked; it would look like a diff that somebody writes.
            if (FileStatus.TryGet(path, out var named, follow: true) == 0) RequireOther(path, named, basePath, "the base");
            RequireRaw(path);
            var file = OpenToRead(path);
            try
            {
                var status = FileStatus.Get(file);
                if (status.stx_size != length)
                    throw new GuestMemoryException(GuestMemoryError.BaseSizeMismatch, $"The diff {path} is {status.stx_size} bytes long and the base {basePath} {length}: it is not of this memory.");
                RequireOther(path, status, basePath, "the base");
                var words = DirtySidecar.TryLoad(path, file, length, force);
                if (words is null && !force) DiffTrust.RequireFineHoles(path, status);
                var diff = new Diff(path, file, length, words, status, cancellation);
                if (words is null && !force && length > 0 && diff.Ranges is [(0, var size)] && size == length) throw DiffTrust.NoHole(path);
                return diff;
            }
            catch
            {
                file.Dispose();
                throw;
            }
        }

        /// <summary>Refuses a diff that is another file of the merge.</summary>
        public void RequireOther(string path, string what) => RequireOther(Path, _status, path, what);

        /// <summary>Marks the pages that it has.</summary>
        public void MarkIn(ulong[] words)
        {
            foreach (var (offset, size) in Ranges)
            {
                for (var page = offset / HostPage.Size; page * HostPage.Size < offset + size; page++) words[page >> 6] |= 1UL << (int)(page & 63);
            }
        }

        public void Dispose() => File.Dispose();

        private static void RequireOther(string diff, Statx ofDiff, string path, string what)
        {
            if (FileStatus.TryGet(path, out var status, follow: true) != 0) return;
            if (status.stx_ino == ofDiff.stx_ino && status.stx_dev_major == ofDiff.stx_dev_major && status.stx_dev_minor == ofDiff.stx_dev_minor)
                throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"{diff} is to be merged as a diff, and is {what}, too.");
        }

        private static IEnumerable<(ulong Offset, ulong Size)> ByBits(ulong[] words, ulong length)
        {
            var pages = (length + HostPage.Size - 1) / HostPage.Size;
            for (ulong page = 0; (page = Next(page, set: true)) < pages;)
            {
                var end = Next(page, set: false);
                yield return (page * HostPage.Size, Math.Min(end * HostPage.Size, length) - (page * HostPage.Size));
                page = end;
            }

            ulong Next(ulong from, bool set)
            {
                for (var at = from; at < pages; at = (at | 63) + 1)
                {
                    var word = (set ? words[at >> 6] : ~words[at >> 6]) >> (int)(at & 63);
                    if (word != 0) return Math.Min(at + (ulong)BitOperations.TrailingZeroCount(word), pages);
                }

                return pages;
            }
        }
    }

    /// <summary>Copies what files have.</summary>
    private sealed class Merger(List<Diff> diffs, ulong length, bool isBaseToldByHoles, Action<ulong, ulong>? progress, CancellationToken cancellation)
    {
        private readonly ulong _ofDiffs = diffs.Aggregate(0UL, static (sum, diff) => diff.Ranges.Aggregate(sum, static (each, range) => each + range.Size));
        private ulong _total;
        private ulong _done;
        private bool _isCopiedByHand;

        /// <summary>The bytes of diffs that were written.</summary>
        public ulong Bytes { get; private set; }

        public long Pages => (long)((Bytes + HostPage.Size - 1) / HostPage.Size);

        public void Patch(SafeFileHandle target, string basePath)
        {
            // It is of what the base was.
            DigestSidecar.Remove(basePath);
            _total = _ofDiffs;
            try
            {
                MergeInto(target);
            }
            catch (IOException exception) when (ImageTarget.IsDiskFull(exception))
            {
                throw ImageTarget.DiskFull(exception, basePath);
            }
        }

        public void Write(SafeFileHandle source, string outPath, bool force)
        {
            RawImage.CheckTarget(outPath, force);
            DirtySidecar.RequirePlace(outPath, force);
            _ = CompleteFile.Write(outPath, force, file =>
            {
                RandomAccess.SetLength(file, (long)length);
                CopyBase(source, file);
                MergeInto(file);
                return true;
            });
            DigestSidecar.Remove(outPath);
            DirtySidecar.Remove(outPath);
        }

        private void CopyBase(SafeFileHandle source, SafeFileHandle target)
        {
            if (FileCopy.TryClone(target, source) == 0)
            {
                _total = _ofDiffs;
                return;
            }

            List<(ulong Offset, ulong Size)> ranges = [.. DataOf(source, length, cancellation)];
            _total = ranges.Aggregate(_ofDiffs, static (sum, range) => sum + range.Size);
            foreach (var (offset, size) in ranges) Copy(source, target, offset, size);
        }

        private void MergeInto(SafeFileHandle target)
        {
            foreach (var diff in diffs)
            {
                foreach (var (offset, size) in diff.Ranges)
                {
                    if (isBaseToldByHoles && !diff.IsToldByHoles) CopyWithZeros(diff.File, target, offset, size);
                    else Copy(diff.File, target, offset, size);
                    Bytes += size;
                }
            }

            RawImage.Flush(target, cancellation);
        }

        /// <summary>Copies what bits tell into a file that no bits tell of: a hole there would mean that the page is not in it, so zeros are written.</summary>
        private void CopyWithZeros(SafeFileHandle source, SafeFileHandle target, ulong offset, ulong size)
        {
            for (var end = offset + size; offset < end;)
            {
                var data = (ulong)Extents.NextData(source, (long)offset, (long)end);
                if (data > offset) Copy(source, target, offset, data - offset, isByHand: true);
                if (data == end) return;
                var hole = (ulong)Extents.NextHole(source, (long)data, (long)end);
                // One that has come meanwhile is copied as data.
                if (hole <= data) hole = end;
                Copy(source, target, data, hole - data);
                offset = hole;
            }
        }

        private void Copy(SafeFileHandle source, SafeFileHandle target, ulong offset, ulong size, bool isByHand = false)
        {
            for (var end = offset + size; offset < end;)
            {
                cancellation.ThrowIfCancellationRequested();
                var part = (int)Math.Min(Piece, end - offset);
                nint count = 0;
                if (!isByHand && !_isCopiedByHand)
                {
                    count = FileCopy.TryCopyRange(source, target, offset, (nuint)part);
                    // Other file systems, old kernels, file systems that cannot: as it was always done. What fails in earnest, such as on a full disk, fails there again, with its right error.
                    _isCopiedByHand = count < 0;
                }

                if (count <= 0) count = CopyByHand(source, target, offset, part);
                offset += (ulong)count;
                _done += (ulong)count;
                progress?.Invoke(_done, _total);
            }
        }

        private static int CopyByHand(SafeFileHandle source, SafeFileHandle target, ulong offset, int size)
        {
            var buffer = ImageBuffers.Get();
            try
            {
                var bytes = ImageBuffers.Aligned(buffer).Span[..Math.Min(size, ImageBuffers.Size)];
                var count = RandomAccess.Read(source, bytes, (long)offset);
                if (count == 0) throw new EndOfStreamException("A file became shorter while it was merged.");
                RandomAccess.Write(target, bytes[..count], (long)offset);
                return count;
            }
            finally
            {
                ImageBuffers.Return(buffer);
            }
        }
    }
}
