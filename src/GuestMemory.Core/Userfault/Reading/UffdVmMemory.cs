using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>A region of a VM that a handler serves, to be read and not written. It has no address here: each access is a copy (<see cref="UffdVmFiles"/>).</summary>
internal sealed class UffdVmMemory : VolatileMemory
{
    private readonly UffdVmFiles _files;
    private readonly ulong _firstPage;
    private readonly ulong _offset;
    private int _released;

    private UffdVmMemory(UffdVmFiles files, UffdVmRegion region)
        : base(region.Size, MemoryProtection.Read)
    {
        _files = files;
        _firstPage = region.FirstPage;
        _offset = region.Offset;
    }

    /// <summary>The memory of a VM, as an address space in which each region lies at its offset in the image. The files are taken over.</summary>
    /// <exception cref="GuestMemoryException">MemoryRegionOverlap: two regions of the VM have the same bytes of the image.</exception>
    public static GuestMemoryMmap Open(UffdVmFiles files, string name)
    {
        var regions = new List<GuestMemoryRegion>();
        try
        {
            foreach (var region in UffdVmRegion.Of(files.Mappings).OrderBy(static region => region.Offset))
            {
                _ = files.TryUse();
                regions.Add(new GuestMemoryRegion(new UffdVmMemory(files, region), new GuestAddress(region.Offset), name));
            }

            return GuestMemoryMmap.FromRegions(regions);
        }
        catch
        {
            foreach (var region in regions) region.Dispose();
            throw;
        }
        finally
        {
            files.Leave();
        }
    }

    public override void Release(bool force)
    {
        base.Release(force);
        if (Interlocked.Exchange(ref _released, 1) == 0) _files.Leave();
    }

    protected override int ReadCore(ulong offset, Span<byte> buffer, out int error)
    {
        if (!_files.TryUse()) throw RegionDisposed();
        try
        {
            return _files.Read(_firstPage + (offset / HostPage.Size), _offset + offset, buffer, out error);
        }
        finally
        {
            _files.Leave();
        }
    }

    protected override int WriteCore(ulong offset, ReadOnlySpan<byte> buffer, out int error)
    {
        error = Errno.EACCES;
        return 0;
    }

    protected override string WhyNot(MemoryProtection access, int error) => error switch
    {
        Errno.EIO => "the VM has it, and the memfd that its VMM handed over has not: the VM's memory is no shared mapping of it",
        Errno.ETIMEDOUT => "the process that serves the VM has ended in the middle of reading its events, and no other has taken its place",
        _ => $"the VM's image cannot be read there ({Errno.Name(error)})",
    };
}
