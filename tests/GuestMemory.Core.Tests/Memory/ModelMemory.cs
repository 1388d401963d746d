namespace GuestMemory.Core.Tests;

/// <summary>What a memory must be: for each region its bytes and the pages that were written.</summary>
internal sealed class ModelMemory(IEnumerable<(ulong Address, ulong Size)> layout)
{
    public sealed record Region(ulong Address, byte[] Bytes, HashSet<long> Dirty)
    {
        public ulong End => Address + (ulong)Bytes.Length;
    }

    public Region[] Regions { get; } = [.. layout.Select(part => new Region(part.Address, new byte[part.Size], []))];

    public Region? Find(ulong address) => Array.Find(Regions, region => address >= region.Address && address < region.End);

    /// <summary>The parts of a range, as far as it is mapped without a hole.</summary>
    public IEnumerable<(Region Region, int Offset, int Count)> Parts(ulong address, int count)
    {
        while (count > 0 && Find(address) is { } region)
        {
            var length = (int)Math.Min((ulong)count, region.End - address);
            yield return (region, (int)(address - region.Address), length);
            address += (ulong)length;
            count -= length;
        }
    }

    public int Mapped(ulong address, int count) => Parts(address, count).Sum(part => part.Count);

    public void Write(ulong address, ReadOnlySpan<byte> bytes)
    {
        foreach (var (region, offset, count) in Parts(address, bytes.Length))
        {
            bytes[..count].CopyTo(region.Bytes.AsSpan(offset));
            bytes = bytes[count..];
            for (var page = offset / (long)HostPage.Size; page <= (offset + count - 1) / (long)HostPage.Size; page++) region.Dirty.Add(page);
        }
    }

    public byte[] Read(ulong address, int count) => [.. Parts(address, count).SelectMany(part => part.Region.Bytes.AsSpan(part.Offset, part.Count).ToArray())];
}
