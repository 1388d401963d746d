using System.Management.Automation;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A parameter that takes an address or a size: a number, hexadecimal text or a size with its unit.</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class NumberAttribute : ArgumentTransformationAttribute
{
    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData)
    {
        try
        {
            return NumberText.Parse(inputData);
        }
        catch (Exception exception) when (exception is FormatException or OverflowException)
        {
            throw new ArgumentTransformationMetadataException(exception.Message, exception);
        }
    }
}

/// <summary>A parameter that takes values of any kind; a hexadecimal literal keeps its value, whatever type PowerShell gave it.</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class LiteralAttribute : ArgumentTransformationAttribute
{
    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData) =>
        inputData is PSObject { BaseObject: int or long } literal && Convert.ToInt64(literal.BaseObject, System.Globalization.CultureInfo.InvariantCulture) < 0
            && literal.ToString().StartsWith("0x", StringComparison.OrdinalIgnoreCase)
            ? Narrow(NumberText.Parse(literal))
            : inputData;

    private static object Narrow(ulong value) => value <= uint.MaxValue ? (uint)value : value;
}
