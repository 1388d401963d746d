using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>Notes which pages of an image are touched, each once, in the order of the first touches. Any thread notes; the handler's saves.</summary>
internal sealed unsafe class UffdRecorder : IDisposable
{
    private readonly SafeMapping _memory;
    private readonly uint* _pages;
    private readonly PageBits _seen;
    private readonly string _path;
    private readonly ulong _imageLength;
    private readonly Lock _lock = new();

    // These are written under the lock.
    private volatile bool _goesOn;
    private int _count;

    // Of the handler's thread.
    private int _saved;

    /// <param name="path">The file.</param>
    /// <param name="imageLength">The bytes of the image.</param>
    /// <param name="goesOn">Whether what stands in the file at the first touch is the beginning, which another process has written.</param>
    /// <exception cref="GuestMemoryException">InvalidRecord: the place cannot be written to.</exception>
    public UffdRecorder(string path, ulong imageLength, bool goesOn = false)
    {
        _path = path;
        _imageLength = imageLength;
        var count = (imageLength + HostPage.Size - 1) / HostPage.Size;
        if (count > int.MaxValue) throw new GuestMemoryException(GuestMemoryError.InvalidRecord, $"An image of {imageLength} bytes is too large to record the touches of.");
        // Only what is touched takes memory.
        var list = HostPage.RoundUp(count * sizeof(uint), HostPage.Size);
        _memory = Mman.Map((nuint)(list + PageBits.SizeOf(count)), Mman.PROT_READ | Mman.PROT_WRITE, Mman.MAP_PRIVATE | Mman.MAP_ANONYMOUS | Mman.MAP_NORESERVE, -1, 0, "Mapping a record of touches");
        _pages = (uint*)_memory.Address;
        _seen = new PageBits((ulong*)(_memory.Address + (nint)list), count);
        _goesOn = goesOn;
        // What another process still writes is left alone.
        if (goesOn || TrySave(always: true) is not { } error) return;
        _memory.Dispose();
        throw new GuestMemoryException(GuestMemoryError.InvalidRecord, error);
    }

    public void Touch(ulong offset, ulong length)
    {
        if (_goesOn) TakeOver();
        for (var page = offset / HostPage.Size; page < (offset + length) / HostPage.Size; page++) Note(page);
    }

    /// <summary>Writes the file where something has come since; what went wrong, or null.</summary>
    public string? TrySave(bool always = false)
    {
        var count = Volatile.Read(ref _count);
        if (!always && _saved == count) return null;
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

    public void Dispose() => _memory.Dispose();

    private void Note(ulong page)
    {
        if (_seen.IsSet(page)) return;
        lock (_lock)
        {
            if (_seen.IsSet(page)) return;
            _seen.Set(page);
            _pages[_count] = (uint)page;
            // Who saves the list reads it without the lock, up to here.
            Volatile.Write(ref _count, _count + 1);
        }
    }

    /// <summary>Begins with what another process has written; no other thread notes anything before.</summary>
    private void TakeOver()
    {
        lock (_lock)
        {
            if (!_goesOn) return;
            try
            {
                foreach (var page in TouchRecord.Load(_path, _imageLength)) Note(page);
            }
            catch (GuestMemoryException)
            {
                // It was taken away: then it begins here.
            }

            _goesOn = false;
        }
    }
}
