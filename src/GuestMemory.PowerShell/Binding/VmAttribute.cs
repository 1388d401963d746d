using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Commands;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A parameter that takes a VM, or its name; several of both, and names with wildcards, where there may be many.</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class VmAttribute : ArgumentTransformationAttribute
{
    /// <summary>Whether the parameter takes an array.</summary>
    public bool Many { get; set; }

    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData) => DescriptorAttribute.Guard(() =>
    {
        if (Many) return Several(inputData);
        if ((inputData is PSObject wrapped ? wrapped.BaseObject : inputData) is not string name) return inputData;
        return VmLookup.ByName(name) switch
        {
            [var vm] => vm,
            [] => throw new FormatException($"There is no VM like '{name}' in this shell. 'Get-GuestVm' lists them."),
            var several => throw new FormatException($"'{name}' means {several.Length} VMs: {string.Join(", ", several.Select(vm => vm.Name))}. Name one, or pipe them."),
        };
    });

    private static object Several(object input) => (input is PSObject wrapped ? wrapped.BaseObject : input) switch
    {
        string name => VmLookup.ByName(name),
        object[] items when Array.Exists(items, static item => (item is PSObject wrapped ? wrapped.BaseObject : item) is string) =>
            items.SelectMany<object, object>(static item => Several(item) is GuestVm[] found ? found : [item]).ToArray(),
        _ => input,
    };
}
