namespace GuestMemory.Core;

/// <summary>What can be part of a guest's memory: one region, or a whole address space.</summary>
public interface IGuestMemorySource
{
    /// <summary>The regions, in ascending order of their guest addresses.</summary>
    IReadOnlyList<GuestMemoryRegion> GetRegions();
}
