using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Nbd;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Exports by the name that was typed.</summary>
internal static class ExportLookup
{
    /// <exception cref="GuestMemoryException">ExportNotFound: a name without wildcards names none.</exception>
    public static MemoryExport[] ByName(string name)
    {
        var pattern = WildcardPattern.Get(name, WildcardOptions.IgnoreCase);
        MemoryExport[] found = [.. Session.Exports.Where(export => pattern.IsMatch(export.Name))];
        return found.Length > 0 || WildcardPattern.ContainsWildcardCharacters(name)
            ? found
            : throw new GuestMemoryException(GuestMemoryError.ExportNotFound, $"There is no export '{name}' in this shell. 'Get-GuestMemoryExport' lists them.");
    }
}
