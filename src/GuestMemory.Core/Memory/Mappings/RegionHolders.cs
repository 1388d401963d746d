namespace GuestMemory.Core;

/// <summary>Who relies on a mapping: the handlers and VMs that hold it. Thread-safe by its owner's lock.</summary>
internal sealed class RegionHolders
{
    private readonly List<IRegionHolder> _holders = [];

    /// <summary>Whether a holder provides missing pages, alive or not.</summary>
    public bool HaveProvider => Provider is not null;

    /// <summary>The handler that should provide missing pages and is gone.</summary>
    public string? GoneProvider => LiveProvider is null ? Provider?.Description : null;

    /// <summary>A holder that is still there.</summary>
    public IRegionHolder? Live => _holders.Find(static holder => holder.IsLive);

    /// <summary>The holder that provides pages, alive or not.</summary>
    public IRegionHolder? Provider => _holders.Find(static holder => holder.ProvidesPages);

    private IRegionHolder? LiveProvider => _holders.Find(static holder => holder.ProvidesPages && holder.IsLive);

    /// <exception cref="GuestMemoryException">RegionInUse: a live holder provides pages already, and this one would, too.</exception>
    public void Add(IRegionHolder holder)
    {
        if (holder.ProvidesPages && LiveProvider is { } live)
            throw new GuestMemoryException(GuestMemoryError.RegionInUse, $"The region is in use by {live.Description} already.");
        _holders.Add(holder);
    }

    public void Remove(IRegionHolder holder) => _holders.Remove(holder);

    /// <summary>Takes them all, in the order in which they let go: a VM can only when none of its vCPUs waits for a page any more.</summary>
    public IRegionHolder[] TakeAll()
    {
        IRegionHolder[] all = [.. _holders.OrderByDescending(static holder => holder.ProvidesPages)];
        _holders.Clear();
        return all;
    }
}
