using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A parameter that takes where memory goes: a guest physical address, or a PCI register and an offset, "PciBar:00:03.0/2+64KiB".</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class DestinationAttribute : ArgumentTransformationAttribute
{
    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData) => DescriptorAttribute.Guard(() =>
        (inputData is PSObject wrapped ? wrapped.BaseObject : inputData) switch
        {
            VmMemoryDestination destination => destination,
            Alloc alloc => new VmMemoryDestination.ExistingAllocation(alloc, 0),
            string text when text.Length > 0 && !char.IsAsciiDigit(text.TrimStart()[0]) && text.Contains(':', StringComparison.Ordinal) => Register(text),
            string text when text.Length > 0 && !char.IsAsciiDigit(text.TrimStart()[0]) && text.TrimStart()[0] != '-' =>
                throw new FormatException($"'{text}' is not a destination. Write a guest physical address, 0x100000000 or 4GiB, or a PCI register and perhaps an offset, PciBar:00:03.0/2+64KiB."),
            _ => new VmMemoryDestination.GuestPhysicalAddress(NumberText.Parse(inputData)),
        });

    private static VmMemoryDestination.ExistingAllocation Register(string text)
    {
        var parts = text.Split('+', 2);
        return new VmMemoryDestination.ExistingAllocation(Alloc.Parse(parts[0].Trim()), parts.Length == 2 ? NumberText.Parse(parts[1]) : 0);
    }
}
