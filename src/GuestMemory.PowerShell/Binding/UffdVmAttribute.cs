using System.Globalization;
using System.Management.Automation;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Commands;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A parameter that takes a VM of a handler, its name or its number; several of them, and names with wildcards, where there may be many.</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class UffdVmAttribute : ArgumentTransformationAttribute
{
    /// <summary>Whether the parameter takes an array.</summary>
    public bool Many { get; set; }

    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData) => DescriptorAttribute.Guard(() =>
    {
        if (Many) return Several(inputData);
        if (Text(inputData) is not { } text) return inputData;
        return UffdVmLookup.Find(text) switch
        {
            [var vm] => vm,
            [] => throw new FormatException($"No handler of this user serves a VM like '{text}'. 'Get-UffdVm' lists the VMs that are served."),
            var several => throw new FormatException($"'{text}' means {several.Length} VMs: {string.Join(", ", several.Select(static vm => $"{vm.Name} of {vm.SocketPath}"))}. Name one, or pipe it from 'Get-UffdVm -SocketPath PATH'."),
        };
    });

    private static object Several(object input)
    {
        if (Text(input) is { } text) return UffdVmLookup.Find(text);
        return input is object[] items && Array.Exists(items, static item => Text(item) is not null)
            ? items.SelectMany<object, object>(static item => Several(item) is UffdServedVm[] found ? found : [item]).ToArray()
            : input;
    }

    /// <summary>A name or a number as text; null for anything else.</summary>
    private static string? Text(object input) => (input is PSObject wrapped ? wrapped.BaseObject : input) switch
    {
        string text => text,
        int number => number.ToString(CultureInfo.InvariantCulture),
        long number => number.ToString(CultureInfo.InvariantCulture),
        _ => null,
    };
}
