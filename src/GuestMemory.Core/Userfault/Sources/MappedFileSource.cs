using System.Runtime.CompilerServices;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// A memory image, mapped for the handler. The kernel copies out of the mapping, so that a page that cannot be read is an error of
/// that copy and not a signal to this process. The holes of a sparse file are zeros that nobody reads. The file is locked against
/// writers that ask (flock, shared) while it is served.
/// </summary>
internal sealed unsafe class MappedFileSource : PageSource
{
    private const ulong PopulateChunk = 16 << 20;
    private const int Nice = 10;

    private readonly SafeFileHandle _file;
    private readonly SafeMapping _mapping;
    private readonly ulong[] _words;
    private readonly PageBits _data;
    private readonly bool _isSparse;
    private volatile bool _disposed;

    // Of the thread that has the source.
    private Thread? _populate;

    private MappedFileSource(SafeFileHandle file, SafeMapping mapping, string path, ulong length)
    {
        _file = file;
        _mapping = mapping;
        Name = path;
        Length = length;
        var pages = (length + HostPage.Size - 1) / HostPage.Size;
        _words = GC.AllocateArray<ulong>(checked((int)((pages + 63) / 64)), pinned: true);
        _data = new PageBits((ulong*)Unsafe.AsPointer(ref _words[0]), pages);
        _isSparse = FindData();
    }

    public override string Name { get; }

    public override ulong Length { get; }

    /// <exception cref="GuestMemoryException">ImageNotFound, ImageUnreadable.</exception>
    public static MappedFileSource Open(string path)
    {
        SafeFileHandle? file = null;
        SafeMapping? mapping = null;
        try
        {
            file = ImageFile.Open(path);
            var length = RandomAccess.GetLength(file);
            using (var lease = new DescriptorLease(file))
                mapping = Mman.Map((nuint)length, Mman.PROT_READ, Mman.MAP_PRIVATE | Mman.MAP_NORESERVE, lease.Number, 0, $"Mapping the memory image {path}");
            return new MappedFileSource(file, mapping, path, (ulong)length);
        }
        catch
        {
            mapping?.Dispose();
            file?.Dispose();
            throw;
        }
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
        var end = EndOf(offset, length);
        for (var page = offset / HostPage.Size; (page = _data.Next(page, end, set: true)) < end;)
        {
            var hole = _data.Next(page, end, set: false);
            if (!Mman.IsResident(_mapping.Address + (nint)(page * HostPage.Size), (nuint)((hole - page) * HostPage.Size))) return false;
            page = hole;
        }

        return true;
    }

    public override void StartReadAhead()
    {
        _populate = new Thread(Populate) { IsBackground = true, Name = "uffd-readahead" };
        _populate.Start();
    }

    public override void Dispose()
    {
        _disposed = true;
        _populate?.Join();
        _mapping.Dispose();
        _file.Dispose();
        GC.KeepAlive(_words);
    }

    private bool FindData()
    {
        var length = (long)Length;
        for (long at = 0; (at = Extents.NextData(_file, at, length)) < length;)
        {
            var end = Extents.NextHole(_file, at, length);
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
        Scheduling.LowerThread(Nice);
        Scheduling.LowerDisk();
        for (ulong at = 0; at < Length && !_disposed; at += PopulateChunk) PopulateData(at, Math.Min(PopulateChunk, Length - at));
    }

    private void PopulateData(ulong offset, ulong length)
    {
        var end = EndOf(offset, length);
        for (var page = offset / HostPage.Size; (page = _data.Next(page, end, set: true)) < end && !_disposed;)
        {
            var hole = _data.Next(page, end, set: false);
            // A part that cannot be read is found, and answered for, when a fault needs it.
            _ = Mman.TryAdvise(_mapping.Address + (nint)(page * HostPage.Size), (nuint)((hole - page) * HostPage.Size), Mman.MADV_POPULATE_READ);
            page = hole;
        }
    }

    private ulong EndOf(ulong offset, ulong length) => Math.Min((offset + length + HostPage.Size - 1) / HostPage.Size, _data.PageCount);
}
