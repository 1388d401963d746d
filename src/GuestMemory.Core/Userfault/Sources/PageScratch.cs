using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>One thread's memory for pages that must be made before they can be copied: unpacked, or put together of several pieces.</summary>
internal sealed unsafe class PageScratch : IDisposable
{
    private byte* _chunk;
    private byte* _page;
    private byte* _packed;
    private SafeMapping? _zeros;
    private nuint _chunkSize;
    private nuint _pageSize;
    private nuint _packedSize;

    /// <summary>Which chunk of a source <see cref="Chunk"/> holds; -1 for none.</summary>
    public long ChunkNumber { get; set; } = -1;

    /// <summary>Room for a chunk; what it holds stays until the next call with a larger size. Null, as with all of these, where no memory is left.</summary>
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

    public void Dispose()
    {
        NativeMemory.AlignedFree(_chunk);
        NativeMemory.AlignedFree(_page);
        NativeMemory.AlignedFree(_packed);
        _zeros?.Dispose();
        _zeros = null;
        _chunk = _page = _packed = null;
        _chunkSize = _pageSize = _packedSize = 0;
        ChunkNumber = -1;
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
