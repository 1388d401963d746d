using System.Globalization;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using GuestMemory.Core.Images;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// A memory image, mapped for the handler. The kernel copies out of the mapping, so that a page that cannot be read is an error of
/// that copy and not a signal to this process. The holes of a sparse file are zeros that nobody reads.
/// </summary>
internal sealed unsafe class MappedFileSource : PageSource
{
    private const ulong PopulateChunk = 16 << 20;

    private readonly ImageFile _file;
    private readonly SafeMapping _mapping;
    private readonly Thread _populate;
    private readonly ulong[] _words;
    private readonly PageBits _data;
    private readonly bool _isSparse;
    private long _populated;
    private volatile bool _disposed;

    /// <summary>Takes the file over where it succeeds.</summary>
    /// <exception cref="GuestMemoryException">The file cannot be mapped.</exception>
    public MappedFileSource(ImageFile file)
    {
        Length = file.Length;
        using (var lease = new DescriptorLease(file.Descriptor))
            _mapping = Mman.Map((nuint)Length, Mman.PROT_READ, Mman.MAP_PRIVATE | Mman.MAP_NORESERVE, lease.Number, 0, $"Mapping the memory image {file.Path}");
        _file = file;
        var pages = (Length + HostPage.Size - 1) / HostPage.Size;
        _words = GC.AllocateArray<ulong>(checked((int)((pages + 63) / 64)), pinned: true);
        _data = new PageBits((ulong*)Unsafe.AsPointer(ref _words[0]), pages);
        _isSparse = FindData();
        _populate = new Thread(Populate) { IsBackground = true, Name = "uffd-readahead", Priority = ThreadPriority.BelowNormal };
        _populate.Start();
    }

    public override string Name => _file.Path;

    public override ulong Length { get; }

    // Whether a page of zeros is a hole makes no difference to an image.
    public override string Layout => string.Create(CultureInfo.InvariantCulture, $"{Length} bytes");

    /// <summary>The same for a layer, where it makes all the difference.</summary>
    public string LayerLayout => string.Create(CultureInfo.InvariantCulture, $"{_data.Count()} pages, map {ChunkedImage.Crc(MemoryMarshal.AsBytes<ulong>(_words)):x8}");

    public override int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run)
    {
        var isData = true;
        if (_isSparse) length = DataRun(offset, length, out isData);
        run = new PageRunData(isData ? (byte*)_mapping.Address + offset : null, length);
        return 0;
    }

    /// <summary>How many bytes from an offset on are alike: data, or a hole.</summary>
    public ulong DataRun(ulong offset, ulong length, out bool isData) =>
        _data.Run(offset / HostPage.Size, length / HostPage.Size, out isData) * HostPage.Size;

    public override void Prepare(ulong offset, ulong length)
    {
        if (!IsReady(offset, length)) PopulateData(offset, length);
    }

    public override bool IsReady(ulong offset, ulong length) => offset + length <= (ulong)Volatile.Read(ref _populated);

    public override void Dispose()
    {
        _disposed = true;
        _populate.Join();
        _mapping.Dispose();
        _file.Dispose();
        GC.KeepAlive(_words);
    }

    private bool FindData()
    {
        var length = (long)Length;
        for (long at = 0; (at = Extents.NextData(_file.Descriptor, at, length)) < length;)
        {
            var end = Extents.NextHole(_file.Descriptor, at, length);
            if (end <= at) end = length;
            var first = (ulong)at / HostPage.Size;
            _data.Set(first, (((ulong)end + HostPage.Size - 1) / HostPage.Size) - first);
            at = end;
        }

        return _data.Next(0, _data.PageCount, set: false) < _data.PageCount;
    }

    /// <summary>Brings the image into the page cache and this mapping beside the serving, so that a fault rarely waits for the disk.</summary>
    private void Populate()
    {
        for (ulong at = 0; at < Length && !_disposed; at += PopulateChunk)
        {
            PopulateData(at, Math.Min(PopulateChunk, Length - at));
            Volatile.Write(ref _populated, (long)(at + PopulateChunk));
        }
    }

    private void PopulateData(ulong offset, ulong length)
    {
        var end = Math.Min((offset + length + HostPage.Size - 1) / HostPage.Size, _data.PageCount);
        for (var page = offset / HostPage.Size; (page = _data.Next(page, end, set: true)) < end && !_disposed;)
        {
            var hole = _data.Next(page, end, set: false);
            // A part that cannot be read is found, and answered for, when a fault needs it.
            _ = Mman.TryAdvise(_mapping.Address + (nint)(page * HostPage.Size), (nuint)((hole - page) * HostPage.Size), Mman.MADV_POPULATE_READ);
            page = hole;
        }
    }
}
