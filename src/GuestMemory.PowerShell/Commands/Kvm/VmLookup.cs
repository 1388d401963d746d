using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell.Commands;

/// <summary>VMs by the name that was typed.</summary>
internal static class VmLookup
{
    /// <exception cref="GuestMemoryException">VmNotFound: a name without wildcards names none.</exception>
    public static GuestVm[] ByName(string name)
    {
        var pattern = WildcardPattern.Get(name, WildcardOptions.IgnoreCase);
        GuestVm[] found = [.. Session.Vms.Where(vm => pattern.IsMatch(vm.Name))];
        return found.Length > 0 || WildcardPattern.ContainsWildcardCharacters(name)
            ? found
            : throw new GuestMemoryException(GuestMemoryError.VmNotFound, $"There is no VM '{name}' in this shell. 'Get-GuestVm' lists them.");
    }
}
