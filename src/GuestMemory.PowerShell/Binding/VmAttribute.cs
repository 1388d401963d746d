using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Commands;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A parameter that takes a VM, or its name; several of both, and names with wildcards, where there may be many.</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class VmAttribute : LookupAttribute<GuestVm>
{
    /// <inheritdoc/>
    protected override GuestVm[] Find(string text) => VmLookup.ByName(text);

    /// <inheritdoc/>
    protected override string WhyNone(string text) => $"There is no VM like '{text}' in this shell. 'Get-GuestVm' lists them.";

    /// <inheritdoc/>
    protected override string WhichOf(string text, IReadOnlyCollection<GuestVm> found)
    {
        ArgumentNullException.ThrowIfNull(found);
        return $"'{text}' means {found.Count} VMs: {string.Join(", ", found.Select(static vm => vm.Name))}. Name one, or pipe them.";
    }
}
