using System.Management.Automation;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A parameter that takes a UUID: 16 bytes, or text, read byte by byte in the order of the text.</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class UuidAttribute : ArgumentTransformationAttribute
{
    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData) => DescriptorAttribute.Guard(() =>
        (inputData is PSObject wrapped ? wrapped.BaseObject : inputData) switch
        {
            byte[] { Length: 16 } bytes => bytes,
            Guid id => id.ToByteArray(bigEndian: true),
            string text when Guid.TryParse(text, out var id) => id.ToByteArray(bigEndian: true),
            object[] { Length: 16 } numbers => numbers.Select(number => checked((byte)NumberText.Parse(number))).ToArray(),
            _ => throw new FormatException($"'{inputData}' is not a UUID. Write 00112233-4455-6677-8899-aabbccddeeff, or give its 16 bytes."),
        });
}
