using System.Collections;
using System.Management.Automation;
using GuestMemory.Core;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A parameter that takes bytes to search for: hexadecimal text with wildcards, or numbers from 0 to 255.</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class MemoryPatternAttribute : ArgumentTransformationAttribute
{
    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData)
    {
        var value = inputData is PSObject wrapped ? wrapped.BaseObject : inputData;
        try
        {
            // Several texts are several patterns, several numbers the bytes of one.
            return value is IEnumerable many and not string ? Many([.. many.Cast<object>().Select(each => each is PSObject item ? item.BaseObject : each)]) : new[] { One(value) };
        }
        catch (GuestMemoryException exception)
        {
            throw new ArgumentTransformationMetadataException($"{exception.Message} Text is searched for by -Text.", exception);
        }
    }

    private static MemoryPattern[] Many(object?[] values) =>
        Array.TrueForAll(values, static value => value is string or MemoryPattern) ? Array.ConvertAll(values, One) : [MemoryPattern.FromBytes(Array.ConvertAll(values, Byte))];

    private static MemoryPattern One(object? value) => value switch
    {
        MemoryPattern pattern => pattern,
        string text => MemoryPattern.Parse(text),
        _ => MemoryPattern.FromBytes([Byte(value)]),
    };

    private static byte Byte(object? value)
    {
        try
        {
            if (NumberText.Parse(value!) is var number and <= byte.MaxValue) return (byte)number;
        }
        catch (Exception exception) when (exception is FormatException or OverflowException or ArgumentNullException)
        {
            throw new ArgumentTransformationMetadataException($"'{value}' is not a byte. {Help}", exception);
        }

        throw new ArgumentTransformationMetadataException($"{value} is not a byte. {Help}");
    }

    private const string Help = "Give hexadecimal text ('55 8b ?? 5d'), or numbers from 0 to 255 (0x55, 0x8b).";
}
