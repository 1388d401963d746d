using System.Globalization;
using System.Runtime.InteropServices;
using GuestMemory.Core.Images;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// An image, a part of whose pages lies once more in a record of touches, side by side in the order in which a replay brings them in
/// (<see cref="TouchRecord.SavePages"/>): a disk is read from one end of that file to the other, and not at as many places as the image
/// has runs of them.
/// </summary>
internal sealed class WorkingSetSource : CompositeSource
{
    private readonly PageSource _image;
    private readonly MappedFileSource _pages;
    private readonly uint _digest;
    private readonly int _pageCount;

    // The runs of pages that follow each other in the image and in the file, in the image's order, and where each begins in the file.
    private readonly PageRun[] _runs;
    private readonly ulong[] _places;

    private WorkingSetSource(PageSource image, MappedFileSource pages, uint[] numbers)
    {
        _image = image;
        _pages = pages;
        _pageCount = numbers.Length;
        _digest = ChunkedImage.Crc(MemoryMarshal.AsBytes<uint>(numbers));
        var runs = new List<PageRun>();
        UffdReplay.Join(numbers, runs);
        _runs = [.. runs];
        _places = new ulong[_runs.Length];
        var place = TouchRecord.DataOffset(numbers.Length);
        for (var i = 0; i < _runs.Length; place += (ulong)_runs[i++].Count * HostPage.Size) _places[i] = place;
        Array.Sort(_runs, _places, Comparer<PageRun>.Create(static (one, other) => one.First.CompareTo(other.First)));
    }

    public override string Name => _image.Name;

    public override ulong Length => _image.Length;

    public override string Layout => string.Create(CultureInfo.InvariantCulture, $"{_image.Layout}; {_pageCount} pages in {_pages.Length} bytes, list {_digest:x8}");

    /// <summary>Puts the pages of a record in front of an image. The file is taken over where that succeeds.</summary>
    /// <param name="image">The image.</param>
    /// <param name="file">The record.</param>
    /// <param name="memory">The files of the image: none of them may have been written after the record.</param>
    /// <exception cref="GuestMemoryException">InvalidRecord: it is damaged, or of another image.</exception>
    public static WorkingSetSource Open(PageSource image, ImageFile file, IEnumerable<ImageFile> memory)
    {
        var numbers = TouchRecord.LoadPages(file.Handle, file.Path, image);
        var written = FileStatus.Get(file.Descriptor).stx_mtime.Nanoseconds;
        if (memory.FirstOrDefault(other => FileStatus.Get(other.Descriptor).stx_mtime.Nanoseconds > written) is { } newer)
            throw TouchRecord.Invalid(file.Path, $"{newer.Path} was written after it, so that its pages are those of another image, then. If nothing but the time has changed, 'touch' the record");
        return new WorkingSetSource(image, new MappedFileSource(file), numbers);
    }

    protected override PageSource Find(ref ulong offset, ref ulong length)
    {
        var page = (long)(offset / HostPage.Size);
        int low = 0, high = _runs.Length;
        while (low < high)
        {
            var middle = (int)((uint)(low + high) / 2);
            if (_runs[middle].First <= page) low = middle + 1;
            else high = middle;
        }

        if (low > 0 && page < _runs[low - 1].End)
        {
            length = Math.Min(length, (ulong)(_runs[low - 1].End - page) * HostPage.Size);
            offset = _places[low - 1] + ((ulong)(page - _runs[low - 1].First) * HostPage.Size);
            return _pages;
        }

        if (low < _runs.Length) length = Math.Min(length, (ulong)(_runs[low].First - page) * HostPage.Size);
        return _image;
    }

    public override void DoubtReady()
    {
        _pages.DoubtReady();
        _image.DoubtReady();
    }

    /// <summary>First the pages of the record, for which VMs wait: before all else that is read with a lower priority.</summary>
    public override void ReadAhead(CancellationToken cancellation)
    {
        Scheduling.ResetDisk();
        _pages.ReadAll(cancellation);
        _image.ReadAhead(cancellation);
    }

    public override void Dispose()
    {
        _pages.Dispose();
        _image.Dispose();
    }
}
