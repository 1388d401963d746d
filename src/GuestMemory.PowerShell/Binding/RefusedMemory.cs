using System.Diagnostics;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;
using GuestMemory.Core.VhostUser;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A value that was given as memory and is none: whatever is asked of it fails with the reason.</summary>
internal sealed class RefusedMemory(object value) : IGuestMemorySource
{
    /// <summary>What was given.</summary>
    public object Value => value;

    /// <exception cref="GuestMemoryException">ValueNotSupported, always.</exception>
    public IReadOnlyList<GuestMemoryRegion> GetRegions() => throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, value switch
    {
        Process process => $"A process (here {Name(process)}{process.Id}) is not guest memory. 'Get-GuestMemory -ProcessId {process.Id}' gives that of a VMM.",
        UffdServedVm vm => $"The memory of VM '{vm.Name}', which a page-fault handler serves, can be read (Read-GuestMemory) and exported (Export-GuestMemory), and not used otherwise.",
        VhostUserDisk backend => $"The memory of the VM that is connected to the back end '{backend.Name}' can be read (Read-GuestMemory), written (Write-GuestMemory), exported (Export-GuestMemory) and tracked (Set-DirtyBitmap), and not used otherwise.",
        GuestVm vm => $"A VM is not guest memory. VM '{vm.Name}' has its memory in the property Memory: '(Get-GuestVm {vm.Name}).Memory'.",
        string text when Session.HasRegion(text) => $"The name '{text}' is not guest memory. Give the region of that name: '(Get-MmapRegion {text})'.",
        _ => $"'{value}' ({value.GetType().Name}) is not guest memory. Give regions of New-MmapRegion or Get-MmapRegion, or an address space of Get-GuestMemory.",
    });

    /// <inheritdoc/>
    public override string ToString() => value.ToString() ?? "";

    private static string Name(Process process)
    {
        try
        {
            return $"{process.ProcessName}, ";
        }
        catch (InvalidOperationException)
        {
            return "";   // it has ended
        }
    }
}
