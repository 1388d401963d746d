using GuestMemory.Core;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell.Commands;

/// <summary>VMs by the name that was typed.</summary>
internal static class VmLookup
{
    /// <exception cref="GuestMemoryException">VmNotFound: a name without wildcards names none.</exception>
    public static GuestVm[] ByName(string name) =>
        NameLookup.Find(Session.Vms, static vm => vm.Name, name, GuestMemoryError.VmNotFound, "VM", "Get-GuestVm");
}
