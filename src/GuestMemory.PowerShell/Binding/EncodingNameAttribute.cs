using System.Collections;
using System.Management.Automation;
using System.Text;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A parameter that takes encodings, or their names: utf8, ascii, unicode, latin1 and all that .NET knows.</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class EncodingNameAttribute : ArgumentTransformationAttribute
{
    internal static readonly string[] Names = ["utf8", "ascii", "latin1", "unicode", "bigendianunicode", "utf32"];

    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData)
    {
        var value = inputData is PSObject wrapped ? wrapped.BaseObject : inputData;
        return value is IEnumerable many and not string ? many.Cast<object>().Select(One).ToArray() : One(value);
    }

    private static Encoding One(object? input)
    {
        var value = input is PSObject wrapped ? wrapped.BaseObject : input;
        if (value is Encoding encoding) return encoding;
        var name = value?.ToString() ?? "";
        try
        {
            return name.ToLowerInvariant() switch
            {
                "utf8" => new UTF8Encoding(encoderShouldEmitUTF8Identifier: false),
                "unicode" => Encoding.Unicode,
                "bigendianunicode" => Encoding.BigEndianUnicode,
                "utf32" => Encoding.UTF32,
                "latin1" => Encoding.Latin1,
                _ => Encoding.GetEncoding(name),
            };
        }
        catch (ArgumentException exception)
        {
            throw new ArgumentTransformationMetadataException($"'{name}' is not an encoding. Use one of {string.Join(", ", Names)}.", exception);
        }
    }
}
