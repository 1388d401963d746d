using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core;

/// <summary>
/// A memory image, mapped for the handler. The kernel copies out of the mapping, so that a page that cannot be read is an error of
/// that copy and not a signal to this process. The file is locked against writers that ask (flock, shared) while it is served.
/// </summary>
internal sealed unsafe class MappedFileSource : PageSource
{
    private const int PopulateChunk = 16 << 20;

    private readonly SafeFileHandle _file;
    private readonly SafeMapping _mapping;
    private readonly Thread _populate;
    private long _populated;
    private volatile bool _disposed;

    private MappedFileSource(SafeFileHandle file, SafeMapping mapping, string path, ulong length)
    {
        _file = file;
        _mapping = mapping;
        Name = path;
        Length = length;
        _populate = new Thread(Populate) { IsBackground = true, Name = "uffd-readahead", Priority = ThreadPriority.BelowNormal };
        _populate.Start();
    }

    public override string Name { get; }

    public override ulong Length { get; }

    /// <exception cref="GuestMemoryException">ImageNotFound, ImageUnreadable.</exception>
    public static MappedFileSource Open(string path)
    {
        SafeFileHandle? file = null;
        try
        {
            file = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.Read);
            var length = RandomAccess.GetLength(file);
            if (length <= 0) throw new GuestMemoryException(GuestMemoryError.ImageUnreadable, $"The memory image {path} is empty.");
            SafeMapping mapping;
            using (var lease = new DescriptorLease(file))
                mapping = Mman.Map((nuint)length, Mman.PROT_READ, Mman.MAP_PRIVATE | Mman.MAP_NORESERVE, lease.Number, 0, $"Mapping the memory image {path}");
            return new MappedFileSource(file, mapping, path, (ulong)length);
        }
        catch (Exception exception)
        {
            file?.Dispose();
            throw exception switch
            {
                FileNotFoundException or DirectoryNotFoundException => new GuestMemoryException(GuestMemoryError.ImageNotFound, $"There is no memory image at {path}.", exception),
                IOException or UnauthorizedAccessException => new GuestMemoryException(GuestMemoryError.ImageUnreadable, $"The memory image {path} cannot be opened for reading: {exception.Message}", exception),
                GuestMemoryException known => known,
                _ => exception,
            };
        }
    }

    public override int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run)
    {
        run = new PageRunData((byte*)_mapping.Address + offset, length);
        return 0;
    }

    public override void Prepare(ulong offset, ulong length)
    {
        if (offset + length > (ulong)Volatile.Read(ref _populated)) _ = Mman.TryAdvise(_mapping.Address + (nint)offset, (nuint)length, Mman.MADV_POPULATE_READ);
    }

    public override void Dispose()
    {
        _disposed = true;
        _populate.Join();
        _mapping.Dispose();
        _file.Dispose();
    }

    /// <summary>Brings the image into the page cache and this mapping beside the serving, so that a fault rarely waits for the disk.</summary>
    private void Populate()
    {
        for (ulong at = 0; at < Length && !_disposed; at += PopulateChunk)
        {
            // A part that cannot be read is found, and answered for, when a fault needs it.
            _ = Mman.TryAdvise(_mapping.Address + (nint)at, (nuint)Math.Min(PopulateChunk, Length - at), Mman.MADV_POPULATE_READ);
            Volatile.Write(ref _populated, (long)(at + PopulateChunk));
        }
    }
}
