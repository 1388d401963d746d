using System.Collections;
using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VhostUser;

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

    /// <summary>Whether the cmdlet takes the memory of a VM that is connected to a back end, which its front end may take away at any time.</summary>
    public bool Backends { get; set; }

    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData)
    {
        var value = inputData is PSObject wrapped ? wrapped.BaseObject : inputData;
        if (value is IEnumerable many and not string && !IsExcepted(value)) return many.Cast<object>().Select(One).ToArray();
        // As the parameter has it: what is not yet an array binds only after parameters that a property of the input has the name of.
        return One(inputData) is var one && (one is PSObject { BaseObject: IGuestMemorySource source } || (source = (one as IGuestMemorySource)!) is not null) ? new[] { source } : one;
    }

    private object One(object input)
    {
        var value = input is PSObject wrapped ? wrapped.BaseObject : input;
        return value is null || (value is IGuestMemorySource && (Backends || value is not VhostUserDisk)) || IsExcepted(value) ? input : new RefusedMemory(value);
    }

    private bool IsExcepted(object? value) => Array.Exists(Except, type => type.IsInstanceOfType(value));
}
