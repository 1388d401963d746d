using System.Collections;
using System.Management.Automation;
using GuestMemory.Core;

namespace GuestMemory.PowerShell.Binding;

/// <summary>Parameters that take open files; a path is one of the session.</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class DescriptorAttribute : ArgumentTransformationAttribute
{
    /// <summary>Whether it takes several.</summary>
    public bool Many { get; set; }

    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData) => Guard(() =>
    {
        var value = inputData is PSObject wrapped ? wrapped.BaseObject : inputData;
        if (!Many) return DescriptorArgument.From(inputData, path => Resolve(engineIntrinsics, path));
        return value is IEnumerable many and not string
            ? many.Cast<object>().Select(one => DescriptorArgument.From(one, path => Resolve(engineIntrinsics, path))).ToArray()
            : new[] { DescriptorArgument.From(inputData, path => Resolve(engineIntrinsics, path)) };
    });

    internal static object Guard(Func<object> transform)
    {
        try
        {
            return transform();
        }
        catch (Exception exception) when (exception is FormatException or OverflowException or GuestMemoryException)
        {
            throw new ArgumentTransformationMetadataException(exception.Message, exception);
        }
    }

    internal static string Resolve(EngineIntrinsics engineIntrinsics, string path) =>
        engineIntrinsics.SessionState.Path.GetUnresolvedProviderPathFromPSPath(path, out var provider, out _) is { } resolved && provider.Name == "FileSystem"
            ? resolved
            : throw new FormatException($"{path} is not a path of the file system.");
}
