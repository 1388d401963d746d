namespace GuestMemory.Core.Nbd;

/// <summary>The bytes of an export: guest addresses, with holes where the guest has no memory; or the regions one behind the other, as in a raw image.</summary>
internal sealed class ExportSpace
{
    private readonly (ulong Start, ulong Size, ulong GuestAddress)[] _parts;

    /// <exception cref="GuestMemoryException">NoMemoryRegion; ValueNotSupported: the last address is past 2^63 - 1, which a file's last offset is.</exception>
    public ExportSpace(GuestMemoryMmap memory, bool isPacked)
    {
        Memory = memory;
        if (memory.Regions.Count == 0) throw new GuestMemoryException(GuestMemoryError.NoMemoryRegion, "Memory without a region cannot be exported.");
        ulong end = 0;
        _parts = [.. memory.Regions.Select(region =>
        {
            var start = isPacked ? end : region.GuestAddress;
            if (start > long.MaxValue || region.Size > long.MaxValue - start)
                throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"Region {region} lies past the last offset of a file, 2^63 - 1. The regions one behind the other have room.");
            end = start + region.Size;
            return (start, region.Size, region.GuestAddress);
        })];
        Size = end;
    }

    public GuestMemoryMmap Memory { get; }

    /// <summary>The length in bytes.</summary>
    public ulong Size { get; }

    /// <summary>What is at an offset: where in the guest, or null for a hole; and how long that goes on, at most so far.</summary>
    public (ulong? GuestAddress, ulong Length) At(ulong offset, ulong length)
    {
        // The last part that does not begin behind it.
        var (low, high) = (0, _parts.Length);
        while (low < high)
        {
            var middle = (low + high) / 2;
            if (_parts[middle].Start <= offset) low = middle + 1;
            else high = middle;
        }

        if (low > 0 && offset - _parts[low - 1].Start < _parts[low - 1].Size)
        {
            var part = _parts[low - 1];
            return (part.GuestAddress + (offset - part.Start), Math.Min(length, part.Size - (offset - part.Start)));
        }

        return (null, Math.Min(length, (low < _parts.Length ? _parts[low].Start : Size) - offset));
    }
}
