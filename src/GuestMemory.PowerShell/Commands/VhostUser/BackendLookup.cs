using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VhostUser;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Back ends by the name that was typed.</summary>
internal static class BackendLookup
{
    /// <exception cref="GuestMemoryException">BackendNotFound: a name without wildcards names none.</exception>
    public static VhostUserDisk[] ByName(string name)
    {
        var pattern = WildcardPattern.Get(name, WildcardOptions.IgnoreCase);
        VhostUserDisk[] found = [.. Session.Backends.Where(backend => pattern.IsMatch(backend.Name))];
        return found.Length > 0 || WildcardPattern.ContainsWildcardCharacters(name)
            ? found
            : throw new GuestMemoryException(GuestMemoryError.BackendNotFound, $"There is no back end '{name}' in this shell. 'Get-VhostUserBackend' lists them.");
    }
}
