using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Notes which pages of an image are touched, each once, in the order of the first touches. The list is a memfd, which processes may share: the one that serves
/// notes, its successor goes on, and another may save. Any thread notes; one at a time saves.
/// </summary>
internal sealed unsafe class UffdRecorder : IDisposable
{
    // How many pages are in the list, before the first of them.
    private const int HeaderSize = 8;

    private readonly SafeMapping _memory;
    private readonly SafeMapping _bits;
    private readonly int* _count;
    private readonly uint* _pages;
    private readonly PageBits _seen;
    private readonly string? _path;
    private readonly ulong _imageLength;
    private readonly Lock _lock = new();

    // Whether what another process noted in the list is known here. Written under the lock.
    private volatile bool _knowsList;

    // Of the thread that saves.
    private int _saved = -1;

    /// <summary>Takes the list over.</summary>
    /// <param name="list">See <see cref="CreateList"/>.</param>
    /// <param name="imageLength">The bytes of the image.</param>
    /// <param name="path">The file; null where another process saves.</param>
    /// <exception cref="GuestMemoryException">InvalidRecord: it is no such list.</exception>
    public UffdRecorder(SafeDescriptor list, ulong imageLength, string? path)
    {
        _path = path;
        _imageLength = imageLength;
        List = list;
        var size = SizeOf(imageLength);
        if ((Memfd.Seals(list) & Memfd.F_SEAL_SHRINK) == 0 || FileStatus.Get(list).stx_size != size) throw new GuestMemoryException(GuestMemoryError.InvalidRecord, "What was kept as a list of touches is not one of this image.");
        _memory = Mman.Map((nuint)size, Mman.PROT_READ | Mman.PROT_WRITE, Mman.MAP_SHARED, list.Number, 0, "Mapping a record of touches");
        _count = (int*)_memory.Address;
        _pages = (uint*)(_memory.Address + HeaderSize);
        // Only what is touched takes memory.
        _bits = Mman.Map((nuint)PageBits.SizeOf(PagesOf(imageLength)), Mman.PROT_READ | Mman.PROT_WRITE, Mman.MAP_PRIVATE | Mman.MAP_ANONYMOUS | Mman.MAP_NORESERVE, -1, 0, "Mapping a record of touches");
        _seen = new PageBits((ulong*)_bits.Address, PagesOf(imageLength));
    }

    /// <summary>What is shared with other processes.</summary>
    public SafeDescriptor List { get; }

    /// <summary>An empty list of the pages of an image.</summary>
    /// <exception cref="GuestMemoryException">InvalidRecord: the image has too many pages.</exception>
    public static SafeDescriptor CreateList(ulong imageLength)
    {
        if (PagesOf(imageLength) > int.MaxValue) throw new GuestMemoryException(GuestMemoryError.InvalidRecord, $"An image of {imageLength} bytes is too large to record the touches of.");
        return Memfd.CreateSealed("uffd-record", (long)SizeOf(imageLength), 0);
    }

    /// <summary>Writes an empty record, so that a place that cannot be written to is known before the first VM.</summary>
    /// <exception cref="GuestMemoryException">InvalidRecord.</exception>
    public UffdRecorder Begin() => TrySave() is { } error ? throw new GuestMemoryException(GuestMemoryError.InvalidRecord, error) : this;

    /// <summary>Goes on with what stands in the file. No thread notes anything yet.</summary>
    public UffdRecorder GoOn()
    {
        try
        {
            foreach (var page in TouchRecord.Load(_path!, _imageLength)) Note(page);
        }
        catch (GuestMemoryException)
        {
            // It was taken away: then it begins here.
        }

        _saved = *_count;
        return this;
    }

    public void Touch(ulong offset, ulong length)
    {
        if (!_knowsList) ReadList();
        for (var page = offset / HostPage.Size; page < (offset + length) / HostPage.Size; page++) Note(page);
    }

    /// <summary>Writes the file where something has come since; what went wrong, or null.</summary>
    public string? TrySave()
    {
        // The worker that notes may be one that a VM has taken over.
        var count = Math.Clamp(Volatile.Read(ref *_count), 0, (int)PagesOf(_imageLength));
        if (_path is null || _saved == count) return null;
        try
        {
            TouchRecord.Save(_path, _imageLength, new ReadOnlySpan<uint>(_pages, count));
            _saved = count;
            return null;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or GuestMemoryException)
        {
            return $"The record {_path} cannot be written: {exception.Message}";
        }
    }

    public void Dispose()
    {
        _memory.Dispose();
        _bits.Dispose();
        List.Dispose();
    }

    private static ulong PagesOf(ulong imageLength) => (imageLength + HostPage.Size - 1) / HostPage.Size;

    private static ulong SizeOf(ulong imageLength) => HostPage.RoundUp(HeaderSize + (PagesOf(imageLength) * sizeof(uint)), HostPage.Size);

    private void Note(ulong page)
    {
        if (_seen.IsSet(page)) return;
        lock (_lock)
        {
            var count = *_count;
            // Of a list that another process has spoilt no more is used than there is room for.
            if (_seen.IsSet(page) || (ulong)count >= _seen.PageCount) return;
            _seen.Set(page);
            _pages[count] = (uint)page;
            // The supervisor, which saves the list, reads it without the lock, up to here.
            Volatile.Write(ref *_count, count + 1);
        }
    }

    /// <summary>Takes note of what another process that is gone has noted.</summary>
    private void ReadList()
    {
        lock (_lock)
        {
            if (_knowsList) return;
            for (var i = 0; i < Math.Clamp(*_count, 0, (int)_seen.PageCount); i++)
            {
                if (_pages[i] < _seen.PageCount) _seen.Set(_pages[i]);
            }

            _knowsList = true;
        }
    }
}
