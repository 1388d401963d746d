using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <summary>The memory in which a front end keeps what is in flight, for all virtqueues (GET_INFLIGHT_FD, SET_INFLIGHT_FD).</summary>
internal sealed class InflightRegion : IDisposable
{
    private readonly MmapRegion _memory;
    private readonly ushort _queueSize;

    private InflightRegion(MmapRegion memory, ushort queueCount, ushort queueSize) => (_memory, QueueCount, _queueSize) = (memory, queueCount, queueSize);

    public int QueueCount { get; }

    /// <summary>The bytes of a region.</summary>
    public static ulong BytesFor(ushort queueCount, ushort queueSize) => queueCount * InflightQueue.BytesFor(queueSize);

    /// <summary>Makes the file of a region; the front end can hand it to the next back end as its own.</summary>
    public static SafeDescriptor CreateFile(ushort queueCount, ushort queueSize) => Memfd.CreateSealed("vhost-inflight", (long)BytesFor(queueCount, queueSize), 0);

    /// <summary>Maps a region; the file stays the caller's.</summary>
    /// <exception cref="GuestMemoryException">What <see cref="MmapRegionBuilder.Build"/> throws.</exception>
    public static InflightRegion Map(SafeDescriptor file, ulong offset, ushort queueCount, ushort queueSize)
    {
        using var duplicate = Descriptor.Duplicate(file);
        return new InflightRegion(new MmapRegionBuilder(BytesFor(queueCount, queueSize)).WithFile(duplicate, offset).Build(), queueCount, queueSize);
    }

    /// <summary>Whether a virtqueue of so many descriptors has room in it.</summary>
    public bool Holds(int index, int size) => index < QueueCount && size <= _queueSize;

    /// <summary>The part of a virtqueue.</summary>
    public InflightQueue Queue(int index)
    {
        var bytes = InflightQueue.BytesFor(_queueSize);
        return new InflightQueue(_memory.GetSlice((ulong)index * bytes, bytes), _queueSize);
    }

    public void Dispose() => _memory.Dispose();
}
