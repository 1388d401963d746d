namespace GuestMemory.Core.Userfault;

/// <summary>
/// Regions of this process as a source: each page as it is when it is asked for. They stay mapped, and no userfaultfd may watch
/// them meanwhile.
/// </summary>
internal sealed unsafe class MemorySource : PageSource, IRegionHolder
{
    private readonly (ulong Offset, ulong Size, ulong Address)[] _parts;
    private readonly List<MmapRegion> _held = [];
    private volatile bool _ended;

    /// <exception cref="GuestMemoryException">RegionInUse, RegionDisposed, UnalignedSize.</exception>
    public MemorySource(GuestMemoryMmap memory)
    {
        _parts = [.. UffdMappingList.FromMemory(memory).Select(mapping => (mapping.Offset, mapping.Size, mapping.BaseHostVirtAddr))];
        Length = memory.Size;
        try
        {
            foreach (var region in memory.Regions)
            {
                region.GetMmapRegion().AddHolder(this);
                region.GetMmapRegion().KeepMapped();
                _held.Add(region.GetMmapRegion());
            }
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    public override string Name => "memory of this process";

    public override ulong Length { get; }

    public string Description => "a page-fault handler that serves out of it";

    public bool IsLive => !_ended;

    // Not itself, but nobody else may: the thread that provides pages out of this memory must never wait for one of it.
    bool IRegionHolder.ProvidesPages => true;

    public override int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run)
    {
        foreach (var part in _parts)
        {
            if (offset - part.Offset >= part.Size) continue;
            run = new PageRunData((byte*)part.Address + (offset - part.Offset), Math.Min(length, part.Size - (offset - part.Offset)));
            return 0;
        }

        run = default;
        return Interop.Errno.EFAULT;
    }

    void IRegionHolder.Release(MmapRegion region)
    {
        // Forced away: it is unmapped when the handler ends.
    }

    public override void Dispose()
    {
        if (_ended) return;
        _ended = true;
        foreach (var mapping in _held)
        {
            mapping.RemoveHolder(this);
            mapping.LetUnmap();
        }
    }
}
