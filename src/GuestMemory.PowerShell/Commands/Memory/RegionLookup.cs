using System.Management.Automation;
using GuestMemory.Core;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Regions by the name that was typed.</summary>
internal static class RegionLookup
{
    /// <exception cref="GuestMemoryException">RegionNotFound: a name without wildcards names none.</exception>
    public static GuestMemoryRegion[] ByName(string name)
    {
        var pattern = WildcardPattern.Get(name, WildcardOptions.IgnoreCase);
        GuestMemoryRegion[] found = [.. Session.Regions.Where(region => pattern.IsMatch(region.Name))];
        return found.Length > 0 || WildcardPattern.ContainsWildcardCharacters(name)
            ? found
            : throw new GuestMemoryException(GuestMemoryError.RegionNotFound, $"There is no region '{name}' in this shell. 'Get-MmapRegion' lists them.");
    }
}
