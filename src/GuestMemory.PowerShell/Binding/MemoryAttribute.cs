using System.Collections;
using System.Management.Automation;
using GuestMemory.Core;

namespace GuestMemory.PowerShell.Binding;

/// <summary>
/// A parameter that takes memory. Anything else stays in its place as a <see cref="RefusedMemory"/>, so that the cmdlet answers with an
/// error of its own instead of the binder's.
/// </summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class MemoryAttribute : ArgumentTransformationAttribute
{
    /// <summary>Types that another parameter of the cmdlet takes from the pipeline, or at the same position.</summary>
    public Type[] Except { get; set; } = [];

    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData)
    {
        var value = inputData is PSObject wrapped ? wrapped.BaseObject : inputData;
        return value is IEnumerable many and not string && !IsExcepted(value) ? many.Cast<object>().Select(One).ToArray() : One(inputData);
    }

    private object One(object input)
    {
        var value = input is PSObject wrapped ? wrapped.BaseObject : input;
        return value is null or IGuestMemorySource || IsExcepted(value) ? input : new RefusedMemory(value);
    }

    private bool IsExcepted(object? value) => Array.Exists(Except, type => type.IsInstanceOfType(value));
}
