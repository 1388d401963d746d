using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <content>Handlers and VMs that use the memory.</content>
public sealed partial class MmapRegion
{
    /// <summary>
    /// Has a handler provide the pages of regions from now on: all, or none. On return every access to them is guarded, and none is under
    /// way that began before: what it would touch next may be missing by then.
    /// </summary>
    /// <param name="regions">The regions.</param>
    /// <param name="provider">The handler.</param>
    /// <param name="cancellation">Ends the wait for accesses that are under way.</param>
    /// <exception cref="GuestMemoryException">RegionDisposed; RegionInUse: another handler serves it, or a span or reference over it is in use.</exception>
    /// <exception cref="OperationCanceledException">The token was cancelled; everything is as before.</exception>
    internal static void HandOver(IReadOnlyList<MmapRegion> regions, IRegionHolder provider, CancellationToken cancellation)
    {
        var held = 0;
        try
        {
            for (; held < regions.Count; held++) regions[held].AddHolder(provider);
            foreach (var region in regions)
            {
                if (region.IsLeased) throw new GuestMemoryException(GuestMemoryError.RegionInUse, "The region is in use by a span or a reference over its memory. Dispose of that lease first.");
                region.WaitForCopies(cancellation);
            }

            // Short accesses are not counted. They are over when each thread has gone on for a while.
            if (regions.Any(static region => !region._alwaysGuarded)) ThreadProgress.WaitForOthers(cancellation);
        }
        catch
        {
            while (held > 0) regions[--held].RemoveHolder(provider);
            throw;
        }
    }

    /// <summary>Registers a holder. While one provides pages every access that begins is guarded, and there is no second such one.</summary>
    /// <exception cref="GuestMemoryException">RegionDisposed; RegionInUse.</exception>
    internal void AddHolder(IRegionHolder holder)
    {
        lock (_lock)
        {
            if (IsDisposed) throw RegionDisposed();
            _holders.Add(holder);
            if (holder.ProvidesPages) Set(Guarded);
        }
    }

    /// <summary>Takes a holder's claim back, where what it wanted did not work out.</summary>
    internal void RemoveHolder(IRegionHolder holder)
    {
        lock (_lock)
        {
            _holders.Remove(holder);
            if (!_alwaysGuarded && !_holders.HaveProvider) Clear(Guarded);
        }
    }
}
