using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>One thread's memory for pages that must be made before they can be copied: unpacked, or put together of several pieces.</summary>
internal sealed unsafe class PageScratch : IDisposable
{
    // A huge page of the usual size.
    private const nuint Kept = 2 << 20;

    private ChunkCache? _cache;
    private ChunkCache.Place? _place;
    private byte* _chunk;
    private byte* _page;
    private byte* _packed;
    private SafeMapping? _zeros;
    private nuint _chunkSize;
    private nuint _pageSize;
    private nuint _packedSize;

    /// <summary>Keeps a chunk of a cache where it is until the next one, or until <see cref="Unpin"/>.</summary>
    public void Pin(ChunkCache cache, ChunkCache.Place place)
    {
        Unpin();
        _cache = cache;
        _place = place;
    }

    /// <summary>Lets go of a chunk that was found last.</summary>
    public void Unpin()
    {
        if (_place is not null) _cache!.Unpin(_place);
        _place = null;
    }

    /// <summary>Room for a chunk where the cache has none. Null, as with all of these, where no memory is left.</summary>
    public byte* Chunk(nuint size) => Room(ref _chunk, ref _chunkSize, size);

    /// <summary>Room for a chunk before it is unpacked.</summary>
    public byte* Packed(nuint size) => Room(ref _packed, ref _packedSize, size);

    /// <summary>Zeros that are nowhere in memory.</summary>
    public byte* Zeros(nuint size)
    {
        if (_zeros is null || _zeros.Length < size)
        {
            _zeros?.Dispose();
            _zeros = Mman.TryMap(size, Mman.PROT_READ, Mman.MAP_PRIVATE | Mman.MAP_ANONYMOUS | Mman.MAP_NORESERVE, -1, 0, out _);
        }

        return _zeros is null ? null : (byte*)_zeros.Address;
    }

    /// <summary>Room for a page.</summary>
    public byte* Page(nuint size) => Room(ref _page, ref _pageSize, size);

    /// <summary>Lets go of what was found, and gives back what only a very large page has needed. Called when the thread's turn is over.</summary>
    public void Trim()
    {
        Unpin();
        if (_pageSize > Kept)
        {
            NativeMemory.AlignedFree(_page);
            _page = null;
            _pageSize = 0;
        }

        // Zeros are no memory, but the tables of a large range are.
        if (_zeros is null || _zeros.Length <= Kept) return;
        _zeros.Dispose();
        _zeros = null;
    }

    public void Dispose()
    {
        Unpin();
        NativeMemory.AlignedFree(_chunk);
        NativeMemory.AlignedFree(_page);
        NativeMemory.AlignedFree(_packed);
        _zeros?.Dispose();
        _zeros = null;
        _chunk = _page = _packed = null;
        _chunkSize = _pageSize = _packedSize = 0;
    }

    private static byte* Room(ref byte* place, ref nuint have, nuint size)
    {
        if (have >= size) return place;
        NativeMemory.AlignedFree(place);
        place = null;
        have = 0;
        try
        {
            place = (byte*)NativeMemory.AlignedAlloc(size, (nuint)HostPage.Size);
            have = size;
        }
        catch (OutOfMemoryException)
        {
            // Later there may be some again.
        }

        return place;
    }
}
