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
    // What is read from the disk ahead of being mapped.
    private const ulong ReadChunk = 16 << 20;

    // A thread that changes the address space meanwhile, such as one that creates another thread, waits until these are there, and what the others read of
    // pages that are not mapped yet waits behind it: 4096 at once held a first fault up for 40 ms.
    private const ulong PopulatedPages = 64;
    private const int EnoughReady = 256;

    private readonly ImageFile _file;
    private readonly SafeMapping _mapping;
    private readonly ulong[] _words;
    private readonly PageBits _data;
    private readonly bool _isSparse;

    // How often in a row what was asked for was in memory. Of any thread; one that overwrites another's count does no harm.
    private volatile int _readyInARow;

    /// <summary>Takes the file over where it succeeds.</summary>
    /// <param name="file">The file.</param>
    /// <param name="pages">Which pages it has; null where its holes tell that.</param>
    /// <exception cref="GuestMemoryException">The file cannot be mapped.</exception>
    public MappedFileSource(ImageFile file, ulong[]? pages = null)
    {
        Length = file.Length;
        using (var lease = new DescriptorLease(file.Descriptor))
            _mapping = Mman.Map((nuint)Length, Mman.PROT_READ, Mman.MAP_PRIVATE | Mman.MAP_NORESERVE, lease.Number, 0, $"Mapping the memory image {file.Path}");
        _file = file;
        _words = GC.AllocateArray<ulong>(DirtySidecar.WordCount(Length), pinned: true);
        _data = new PageBits((ulong*)Unsafe.AsPointer(ref _words[0]), (Length + HostPage.Size - 1) / HostPage.Size);
        if (pages is null) FindData();
        else pages.CopyTo(_words, 0);
        _isSparse = _data.Next(0, _data.PageCount, set: false) < _data.PageCount;
    }

    public override string Name => _file.Path;

    public override ulong Length { get; }

    // Whether a page of zeros is a hole makes no difference to an image.
    public override string Layout => string.Create(CultureInfo.InvariantCulture, $"{Length} bytes");

    /// <summary>The same for a layer, where it makes all the difference.</summary>
    public string LayerLayout => string.Create(CultureInfo.InvariantCulture, $"{_data.Count()} pages, map {ChunkedImage.Crc(MemoryMarshal.AsBytes<ulong>(_words)):x8}");

    /// <summary>Opens a layer, which is of no use unless it is known which pages it has. The file is taken over where that succeeds.</summary>
    /// <param name="file">The layer.</param>
    /// <param name="map">The file of its bits; null where there is none.</param>
    /// <param name="image">What it is a layer of.</param>
    /// <exception cref="GuestMemoryException">BaseSizeMismatch, InvalidImage, LayerUntrusted.</exception>
    public static MappedFileSource OpenLayer(ImageFile file, ImageFile? map, PageSource image)
    {
        if (file.Length != image.Length)
            throw new GuestMemoryException(GuestMemoryError.BaseSizeMismatch, $"The layer {file.Path} is {file.Length} bytes long and the image {image.Name} {image.Length}: it is not of this memory.");
        var status = FileStatus.Get(file.Descriptor);
        if (map is not null)
        {
            DiffTrust.RequireNewer(file.Path, status, map.Path, FileStatus.Get(map.Descriptor));
            return new MappedFileSource(file, DirtySidecar.Read(map.Handle, map.Path, file.Length));
        }

        DiffTrust.RequireFineHoles(file.Path, status);
        var layer = new MappedFileSource(file);
        if (layer._isSparse) return layer;
        layer.Dispose();
        throw DiffTrust.NoHole(file.Path);
    }

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

    public override void Prepare(ulong offset, ulong length, PageScratch scratch)
    {
        if (!IsReady(offset, length)) PopulateData(offset, length);
    }

    public override bool IsReady(ulong offset, ulong length)
    {
        // Looking is a call of the kernel for each fault, and as good as always in vain where the image is in memory.
        if (_readyInARow >= EnoughReady) return true;
        _readyInARow = IsResident(offset, length) ? _readyInARow + 1 : 0;
        return _readyInARow > 0;
    }

    public override void DoubtReady() => _readyInARow = 0;

    private bool IsResident(ulong offset, ulong length)
    {
        var end = EndOf(offset, length);
        for (var page = offset / HostPage.Size; (page = _data.Next(page, end, set: true)) < end;)
        {
            var hole = _data.Next(page, end, set: false);
            if (!Mman.IsResident(_mapping.Address + (nint)(page * HostPage.Size), (nuint)((hole - page) * HostPage.Size))) return false;
            page = hole;
        }

        return true;
    }

    public override void ReadAhead(CancellationToken cancellation)
    {
        Scheduling.LowerDisk();
        ReadAll(cancellation);
    }

    /// <summary>Brings it into the page cache and this mapping.</summary>
    public void ReadAll(CancellationToken cancellation)
    {
        for (ulong at = 0; at < Length && !cancellation.IsCancellationRequested; at += ReadChunk) PopulateData(at, Math.Min(ReadChunk, Length - at), isAhead: true, cancellation);
    }

    public override void Dispose()
    {
        _mapping.Dispose();
        _file.Dispose();
        GC.KeepAlive(_words);
    }

    private void FindData()
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
    }

    private void PopulateData(ulong offset, ulong length, bool isAhead = false, CancellationToken cancellation = default)
    {
        var end = EndOf(offset, length);
        for (var page = offset / HostPage.Size; (page = _data.Next(page, end, set: true)) < end && !cancellation.IsCancellationRequested;)
        {
            var hole = _data.Next(page, end, set: false);
            if (isAhead) Advise(page, hole, Mman.MADV_WILLNEED);
            for (; page < hole && !cancellation.IsCancellationRequested; page = Math.Min(page + PopulatedPages, hole)) Advise(page, Math.Min(page + PopulatedPages, hole), Mman.MADV_POPULATE_READ);
        }
    }

    /// <summary>A part that cannot be read is found, and answered for, when a fault needs it.</summary>
    private void Advise(ulong page, ulong end, int advice) =>
        _ = Mman.TryAdvise(_mapping.Address + (nint)(page * HostPage.Size), (nuint)((end - page) * HostPage.Size), advice);

    private ulong EndOf(ulong offset, ulong length) => Math.Min((offset + length + HostPage.Size - 1) / HostPage.Size, _data.PageCount);
}
