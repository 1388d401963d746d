using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>Memory that this process maps, read while it is exported. It has every page: what is missing is zero.</summary>
internal sealed unsafe class OwnLivePages : ILivePages
{
    private readonly MmapRegion[] _regions;

    public OwnLivePages(GuestMemoryMmap memory)
    {
        Mappings = UffdMappingList.FromMemory(memory);
        _regions = [.. memory.Regions.Select(static region => region.GetMmapRegion())];
    }

    public IReadOnlyList<GuestRegionUffdMapping> Mappings { get; }

    public bool HasData(ulong offset) => true;

    public ulong DataLength(ulong offset, ulong length) => length;

    public bool IsRemoved(ulong page) => true;

    public bool HasCome(ulong page) => true;

    public bool AreEventsNoted() => true;

    public int ReadData(ulong offset, Span<byte> buffer, out int error)
    {
        var index = Mappings.Count - 1;
        while (Mappings[index].Offset > offset) index--;
        var (region, at) = (_regions[index], offset - Mappings[index].Offset);
        try
        {
            if (region is { File: { } file, Flags: var flags } && (flags & MapFlags.Shared) != 0) return ReadFile(file, at, buffer, out error);
            using var lease = region.Lease();
            // By the kernel, as all guarded memory: a page that is missing stays without memory.
            fixed (byte* local = buffer) return (int)GuardedCopy.Read((byte*)lease.Address + at, local, (nuint)buffer.Length, out error);
        }
        catch (Exception exception) when (exception is ObjectDisposedException or GuestMemoryException { Error: GuestMemoryError.RegionDisposed })
        {
            throw LocalMemoryExport.Removed();
        }
    }

    public int ReadImage(ulong offset, Span<byte> buffer, out int error) => ReadData(offset, buffer, out error);

    /// <summary>Reads what a mapping is of. A touch of a page that the file lacks would give it one.</summary>
    private static int ReadFile(FileOffset file, ulong at, Span<byte> buffer, out int error)
    {
        error = 0;
        try
        {
            var count = RandomAccess.Read(file.File, buffer, (long)(file.Start + at));
            if (count < buffer.Length) error = Errno.EIO;
            return count;
        }
        catch (IOException)
        {
            error = Errno.EIO;
            return 0;
        }
    }
}
