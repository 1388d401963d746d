using System.Globalization;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Commands;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A parameter that takes a VM of a handler, its name or its number; several of them, and names with wildcards, where there may be many.</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class UffdVmAttribute : LookupAttribute<UffdServedVm>
{
    /// <inheritdoc/>
    protected override UffdServedVm[] Find(string text) => UffdVmLookup.Find(text);

    /// <inheritdoc/>
    protected override string? Text(object value) => value switch
    {
        string text => text,
        int number => number.ToString(CultureInfo.InvariantCulture),
        long number => number.ToString(CultureInfo.InvariantCulture),
        _ => null,
    };

    /// <inheritdoc/>
    protected override string WhyNone(string text) => $"No handler of this user serves a VM like '{text}'. 'Get-UffdVm' lists the VMs that are served.";

    /// <inheritdoc/>
    protected override string WhichOf(string text, IReadOnlyCollection<UffdServedVm> found)
    {
        ArgumentNullException.ThrowIfNull(found);
        return $"'{text}' means {found.Count} VMs: {string.Join(", ", found.Select(static vm => $"{vm.Name} of {vm.SocketPath}"))}. Name one, or pipe it from 'Get-UffdVm -SocketPath PATH'.";
    }
}
