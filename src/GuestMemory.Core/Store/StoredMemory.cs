using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Store;

/// <summary>A region of a stored image: to be read, and not to be written. A chunk may have to come from another host.</summary>
/// <param name="chunks">The chunks of the image.</param>
/// <param name="origin">The offset of the region's first byte in the memory.</param>
/// <param name="size">The bytes.</param>
internal sealed class StoredMemory(StoredChunks chunks, ulong origin, ulong size) : VolatileMemory(size, MemoryProtection.Read)
{
    protected override int ReadCore(ulong offset, Span<byte> buffer, out int error) => chunks.TryRead(origin + offset, buffer, out error);

    protected override int WriteCore(ulong offset, ReadOnlySpan<byte> buffer, out int error)
    {
        error = Errno.EACCES;
        return 0;
    }

    protected override string WhyNot(MemoryProtection access, int error) => "an image of a store is only read";
}
