using System.Collections;
using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A parameter that takes ranges of guest addresses: those of Get-DirtyBitmap -AsRange, or text, "0x100000+64KiB".</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class RangeAttribute : ArgumentTransformationAttribute
{
    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData)
    {
        var value = inputData is PSObject wrapped ? wrapped.BaseObject : inputData;
        return value is IEnumerable many and not string ? many.Cast<object>().Select(One).ToArray() : new[] { One(inputData) };
    }

    private static AddressRange One(object input)
    {
        var value = input is PSObject wrapped ? wrapped.BaseObject : input;
        if (value is AddressRange range) return range;
        if (value is VmMemoryRange run) return Make(run.Address, run.Size);
        if (value is MemoryBlock block) return Make(block.Address, (ulong)block.Size);
        if (value is GuestMemoryRegion region) return Make(region.GuestAddress, region.Size);
        var parts = (value as string)?.Split('+', 2) ?? [];
        if (parts.Length != 2) throw new ArgumentTransformationMetadataException($"'{input}' is not a range. Write the guest address and the size: '0x100000+64KiB'.");
        try
        {
            return Make(NumberText.Parse(parts[0]), NumberText.Parse(parts[1]));
        }
        catch (Exception exception) when (exception is FormatException or OverflowException)
        {
            throw new ArgumentTransformationMetadataException(exception.Message, exception);
        }
    }

    private static AddressRange Make(ulong address, ulong size) => new(address, size, (long)(size / HostPage.Size));
}
