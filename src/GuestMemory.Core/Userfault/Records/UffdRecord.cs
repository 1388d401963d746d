using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>A file with the pages of an image that VMs touched, in the order of their first touches; see <see cref="UffdHandlerOptions.RecordPath"/>.</summary>
/// <param name="Path">Where the file lies.</param>
/// <param name="ImageLength">The length of the image, in bytes.</param>
/// <param name="PageCount">The number of pages in the record.</param>
/// <param name="Size">What these pages have together, in bytes; an image's last page may be shorter.</param>
/// <param name="HasPages">Whether the file holds the pages themselves too, as a handler that replays it reads them.</param>
public sealed record UffdRecord(string Path, ulong ImageLength, int PageCount, ulong Size, bool HasPages)
{
    /// <summary>Makes one record of several of the same image. A page stands where the run that touched it earliest has it.</summary>
    /// <param name="paths">The records; each counts once, however often it is named.</param>
    /// <param name="destination">Where the result is written; it may be one of the records.</param>
    /// <param name="commonOnly">Whether only the pages are taken that stand in every record.</param>
    /// <param name="force">Whether a file at the destination is replaced.</param>
    /// <exception cref="GuestMemoryException">
    /// RecordNotFound, InvalidRecord (also where the records are of images of different lengths); FileExists; NotAFile; ValueNotSupported: no record.
    /// </exception>
    public static UffdRecord Merge(IEnumerable<string> paths, string destination, bool commonOnly = false, bool force = false) =>
        Merge(paths, destination, commonOnly, force, image: null, default);

    /// <summary>
    /// The same with the pages of the image, side by side in the order in which a replay brings them in: a handler whose image lies on a slow disk
    /// reads them from there, from one end to the other (REAP, ASPLOS 2021). The result is of use for as long as the image and its layers are not written to.
    /// </summary>
    /// <param name="paths">The records, one or more.</param>
    /// <param name="destination">Where the result is written; it may be one of the records.</param>
    /// <param name="memoryPath">The image.</param>
    /// <param name="layerPaths">Its layers, the oldest first, as the handler has them; null where it has none.</param>
    /// <param name="commonOnly">Whether only the pages are taken that stand in every record.</param>
    /// <param name="force">Whether a file at the destination is replaced.</param>
    /// <param name="cancellation">Gives it up; nothing is written then.</param>
    /// <exception cref="GuestMemoryException">
    /// As without pages; ImageNotFound, ImageUnreadable, InvalidImage, BaseSizeMismatch, LayerUntrusted: what is wrong with the image.
    /// </exception>
    public static UffdRecord MergeWithPages(IEnumerable<string> paths, string destination, string memoryPath, IReadOnlyList<string>? layerPaths = null, bool commonOnly = false, bool force = false, CancellationToken cancellation = default)
    {
        ArgumentException.ThrowIfNullOrEmpty(memoryPath);
        using var image = ImageFile.OpenSource(ImageFile.OpenAll(memoryPath, layerPaths ?? []));
        return Merge(paths, destination, commonOnly, force, image, cancellation);
    }

    private static UffdRecord Merge(IEnumerable<string> paths, string destination, bool commonOnly, bool force, PageSource? image, CancellationToken cancellation)
    {
        ArgumentNullException.ThrowIfNull(paths);
        ArgumentException.ThrowIfNullOrEmpty(destination);
        var names = paths.Distinct(StringComparer.Ordinal).ToArray();
        if (names.Length == 0) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "There is no record to merge.");
        if (!force && File.Exists(destination)) throw new GuestMemoryException(GuestMemoryError.FileExists, $"There is a file at {destination} already.");

        var (length, first) = TouchRecord.Load(names[0]);
        if (image is not null && image.Length != length) throw TouchRecord.OfAnother(names[0], length, image.Length);
        // Of each page the earliest place, and in how many records it stands.
        var places = new Dictionary<uint, (int Place, int Count)>(first.Length);
        Add(first);
        foreach (var name in names.Skip(1))
        {
            var (other, pages) = TouchRecord.Load(name);
            if (other != length)
                throw new GuestMemoryException(GuestMemoryError.InvalidRecord, $"{name} is of an image of {other} bytes, and {names[0]} of one of {length}; records of one image can be merged.");
            Add(pages);
        }

        var merged = places.Where(page => !commonOnly || page.Value.Count == names.Length)
            .OrderBy(static page => page.Value.Place).ThenBy(static page => page.Key).Select(static page => page.Key).ToArray();
        if (image is null) TouchRecord.Save(destination, length, merged);
        else TouchRecord.SavePages(destination, image, new UffdReplay(merged, length), cancellation);
        var size = merged.Aggregate(0UL, (sum, page) => sum + Math.Min(HostPage.Size, length - (page * HostPage.Size)));
        return new UffdRecord(destination, length, merged.Length, size, image is not null);

        void Add(uint[] pages)
        {
            for (var place = 0; place < pages.Length; place++)
            {
                places[pages[place]] = places.TryGetValue(pages[place], out var found) ? (Math.Min(found.Place, place), found.Count + 1) : (place, 1);
            }
        }
    }
}
