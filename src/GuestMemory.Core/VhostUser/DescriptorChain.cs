namespace GuestMemory.Core.VhostUser;

/// <summary>A request of the guest in a virtqueue: the buffers that the device reads, and those that it writes to.</summary>
public sealed class DescriptorChain
{
    private readonly GuestMemoryMmap _memory;

    internal DescriptorChain(GuestMemoryMmap memory, ushort head, IReadOnlyList<DescriptorBuffer> readable, IReadOnlyList<DescriptorBuffer> writable)
    {
        _memory = memory;
        Head = head;
        Readable = readable;
        Writable = writable;
        ReadableLength = Sum(readable);
        WritableLength = Sum(writable);
    }

    /// <summary>The index of the first descriptor, by which the used ring names the chain.</summary>
    public int Head { get; }

    /// <summary>What the device reads, in the order of the chain.</summary>
    public IReadOnlyList<DescriptorBuffer> Readable { get; }

    /// <summary>What the device writes to, in the order of the chain.</summary>
    public IReadOnlyList<DescriptorBuffer> Writable { get; }

    /// <summary>The bytes that the device reads; less than 4 GiB.</summary>
    public uint ReadableLength { get; }

    /// <summary>The bytes that the device may write; less than 4 GiB.</summary>
    public uint WritableLength { get; }

    /// <summary>Reads from the readable buffers as if they were one; returns how many bytes there were.</summary>
    /// <param name="offset">The first byte.</param>
    /// <param name="destination">Where the bytes go.</param>
    /// <exception cref="GuestMemoryException">RegionDisposed, PageNotAccessible.</exception>
    public int Read(uint offset, Span<byte> destination)
    {
        var done = 0;
        foreach (var part in Parts(Readable, offset, destination.Length))
        {
            _memory.ReadExact(part.Address, destination.Slice(done, (int)part.Length));
            done += (int)part.Length;
        }

        return done;
    }

    /// <summary>Writes to the writable buffers as if they were one, and marks the pages dirty; returns how many bytes there was room for.</summary>
    /// <param name="offset">The first byte.</param>
    /// <param name="source">The bytes.</param>
    /// <exception cref="GuestMemoryException">RegionDisposed, PageNotAccessible.</exception>
    public int Write(uint offset, ReadOnlySpan<byte> source)
    {
        var done = 0;
        foreach (var part in Parts(Writable, offset, source.Length))
        {
            _memory.WriteExact(part.Address, source.Slice(done, (int)part.Length));
            done += (int)part.Length;
        }

        return done;
    }

    /// <summary>The chain, for debuggers.</summary>
    public override string ToString() => $"chain {Head}: {ReadableLength} bytes to read, {WritableLength} to write";

    /// <summary>The pieces of a range of buffers; ends with the last buffer.</summary>
    private static IEnumerable<DescriptorBuffer> Parts(IReadOnlyList<DescriptorBuffer> buffers, uint offset, int length)
    {
        var (skip, left) = (offset, (uint)length);
        foreach (var (address, size) in buffers)
        {
            if (left == 0) yield break;
            var before = Math.Min(skip, size);
            skip -= before;
            var count = Math.Min(size - before, left);
            left -= count;
            if (count != 0) yield return new DescriptorBuffer(address + before, count);
        }
    }

    private static uint Sum(IReadOnlyList<DescriptorBuffer> buffers)
    {
        uint sum = 0;
        for (var i = 0; i < buffers.Count; i++) sum += buffers[i].Length;
        return sum;
    }
}
