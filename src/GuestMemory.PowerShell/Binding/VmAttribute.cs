using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.PowerShell.Commands;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A parameter that takes a VM, or its name.</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class VmAttribute : ArgumentTransformationAttribute
{
    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData) => DescriptorAttribute.Guard(() =>
    {
        if ((inputData is PSObject wrapped ? wrapped.BaseObject : inputData) is not string name) return inputData;
        return VmLookup.ByName(name) switch
        {
            [var vm] => vm,
            [] => throw new FormatException($"There is no VM like '{name}' in this shell. 'Get-GuestVm' lists them."),
            var several => throw new FormatException($"'{name}' means {several.Length} VMs: {string.Join(", ", several.Select(vm => vm.Name))}. Name one, or pipe them."),
        };
    });
}
