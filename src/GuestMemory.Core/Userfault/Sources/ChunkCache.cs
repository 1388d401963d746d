using System.Runtime.InteropServices;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// The chunks of an image that were unpacked last, for all threads that serve it: what one has unpacked, or a fetcher ahead of it, another
/// copies from. A chunk that is pinned stays; the one that was used longest ago makes room. For any thread.
/// </summary>
internal sealed unsafe class ChunkCache(int chunkSize) : IDisposable
{
    private const int Bytes = 8 << 20;
    private const int FewestPlaces = 8;
    private const int MostPlaces = 64;

    private readonly Lock _lock = new();

    // Under the lock, but for the bytes of a place that is pinned.
    private readonly Place[] _places = [.. Enumerable.Range(0, Math.Clamp(Bytes / chunkSize, FewestPlaces, MostPlaces)).Select(static _ => new Place())];
    private long _uses;

    /// <summary>Whether a chunk is unpacked.</summary>
    public bool Contains(long number)
    {
        lock (_lock) return Find(number) is not null;
    }

    /// <summary>A chunk that is unpacked, pinned; null where it is not.</summary>
    public Place? TryPin(long number)
    {
        lock (_lock)
        {
            if (Find(number) is not { } place) return null;
            place.Pins++;
            place.Used = ++_uses;
            return place;
        }
    }

    /// <summary>A place to unpack a chunk to, pinned; null where all are pinned, or there is no memory.</summary>
    public Place? TryReserve()
    {
        lock (_lock)
        {
            Place? oldest = null;
            foreach (var place in _places)
            {
                if (place.Pins == 0 && (oldest is null || place.Used < oldest.Used)) oldest = place;
            }

            if (oldest is null || !oldest.TryAllocate((nuint)chunkSize)) return null;
            oldest.Number = -1;
            oldest.Pins = 1;
            return oldest;
        }
    }

    /// <summary>The chunk is unpacked: others may find it. It stays pinned.</summary>
    public void Publish(Place place, long number)
    {
        lock (_lock)
        {
            place.Number = number;
            place.Used = ++_uses;
        }
    }

    public void Unpin(Place place)
    {
        lock (_lock) place.Pins--;
    }

    /// <summary>Frees the chunks. No thread uses one any more.</summary>
    public void Dispose()
    {
        lock (_lock) Array.ForEach(_places, static place => place.Free());
    }

    private Place? Find(long number)
    {
        foreach (var place in _places)
        {
            if (place.Number == number) return place;
        }

        return null;
    }

    /// <summary>Memory for one chunk.</summary>
    internal sealed class Place
    {
        public byte* Data { get; private set; }

        /// <summary>Which chunk it holds; -1 for none.</summary>
        public long Number { get; set; } = -1;

        public int Pins { get; set; }

        public long Used { get; set; }

        public bool TryAllocate(nuint size)
        {
            if (Data is not null) return true;
            try
            {
                Data = (byte*)NativeMemory.AlignedAlloc(size, (nuint)HostPage.Size);
            }
            catch (OutOfMemoryException)
            {
                // Later there may be some again.
            }

            return Data is not null;
        }

        public void Free()
        {
            NativeMemory.AlignedFree(Data);
            Data = null;
            Number = -1;
        }
    }
}
