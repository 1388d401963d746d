using System.Collections;
using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Processes;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A parameter that takes where memory lies in a guest: text, "0+3GiB" or "0+3GiB@0x7f0000000000", regions, or ranges.</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class LayoutAttribute : ArgumentTransformationAttribute
{
    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData) => DescriptorAttribute.Guard(() =>
    {
        var value = inputData is PSObject wrapped ? wrapped.BaseObject : inputData;
        return value is IEnumerable many and not string ? many.Cast<object>().Select(One).ToArray() : new[] { One(inputData) };
    });

    private static GuestLayoutRange One(object input)
    {
        var value = input is PSObject wrapped ? wrapped.BaseObject : input;
        if (value is GuestLayoutRange range) return range;
        if (value is AddressRange addresses) return new GuestLayoutRange(addresses.Address, addresses.Size);
        if (value is GuestMemoryRegion region) return new GuestLayoutRange(region.GuestAddress, region.Size);
        var places = (value as string)?.Split('@', 2) ?? [];
        var parts = places.Length == 0 ? [] : places[0].Split('+', 2);
        return parts.Length == 2
            ? new GuestLayoutRange(NumberText.Parse(parts[0]), NumberText.Parse(parts[1]), places.Length == 2 ? NumberText.Parse(places[1]) : null)
            : throw new FormatException($"'{input}' is no part of a layout. Write the guest address and the size, '0+3GiB', and perhaps the address in the process: '0+3GiB@0x7f0000000000'.");
    }
}
