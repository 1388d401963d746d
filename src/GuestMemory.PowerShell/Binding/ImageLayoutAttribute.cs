using System.Collections;
using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Images;

namespace GuestMemory.PowerShell.Binding;

/// <summary>
/// A parameter that takes where the memory of an image belongs: the name of a layout, or ranges: '0-3GiB', whose end is the first address behind it, '4GiB+2GiB', or a
/// hashtable or object with Address, Size and, where it is not behind the range before, FileOffset.
/// </summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class ImageLayoutAttribute : ArgumentTransformationAttribute
{
    /// <summary>The names of layouts.</summary>
    internal static readonly (string Name, ImageLayout Layout, string Explanation)[] Names =
    [
        ("x64", ImageLayout.X64, "A microVM on x86-64: from 0, without 3 GiB to 4 GiB and 256 GiB to 512 GiB"),
        ("Arm64", ImageLayout.Arm64, "A microVM on aarch64: from 2 GiB, without 256 GiB to 512 GiB"),
        ("Flat", ImageLayout.Flat, "All from address 0"),
    ];

    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData)
    {
        var value = inputData is PSObject wrapped ? wrapped.BaseObject : inputData;
        if (value is ImageLayout) return value;
        if (value is string name && Array.Find(Names, each => each.Name.Equals(name, StringComparison.OrdinalIgnoreCase)) is { Layout: { } layout }) return layout;
        try
        {
            return ImageLayout.FromRanges(value is IEnumerable many and not (string or IDictionary) ? many.Cast<object>().Select(One) : [One(inputData)]);
        }
        catch (Exception exception) when (exception is FormatException or OverflowException or GuestMemoryException)
        {
            throw new ArgumentTransformationMetadataException(exception.Message, exception);
        }
    }

    private static ImageRange One(object input)
    {
        var value = input is PSObject wrapped ? wrapped.BaseObject : input;
        switch (value)
        {
            case ImageRange range:
                return range;
            case AddressRange range:
                return new ImageRange(range.Address, range.Size);
            case GuestMemoryRegion region:
                return new ImageRange(region.GuestAddress, region.Size);
            case IDictionary table:
                return FromFields(input, name => table.Contains(name) ? table[name] : null, table.Keys.Cast<object>().Select(static key => key.ToString() ?? ""));
            case string text:
                return FromText(text);
            default:
                var item = PSObject.AsPSObject(input);
                return FromFields(input, name => item.Properties[name]?.Value, []);
        }
    }

    private static ImageRange FromText(string text)
    {
        if (text.Split('+', 2) is [var address, var size]) return new ImageRange(NumberText.Parse(address), NumberText.Parse(size));
        if (text.Split('-', 2) is not [var from, var to]) throw NoRange(text);
        var (start, end) = (NumberText.Parse(from), NumberText.Parse(to));
        return end > start ? new ImageRange(start, end - start) : throw new FormatException($"The range '{text}' is empty: write its first address and the first address behind it, '0-3GiB'.");
    }

    private static ImageRange FromFields(object input, Func<string, object?> get, IEnumerable<string> names)
    {
        if (names.FirstOrDefault(static name => !new[] { "Address", "GuestAddress", "Size", "FileOffset" }.Contains(name, StringComparer.OrdinalIgnoreCase)) is { } unknown)
            throw new FormatException($"A range of a layout has Address, Size and FileOffset, and no {unknown}.");
        if ((get("Address") ?? get("GuestAddress")) is not { } address || get("Size") is not { } size) throw NoRange(input);
        return new ImageRange(NumberText.Parse(address), NumberText.Parse(size), get("FileOffset") is { } offset ? NumberText.Parse(offset) : null);
    }

    private static FormatException NoRange(object input) =>
        new($"'{input}' is no range of guest addresses. Write '0-3GiB', '4GiB+2GiB', or @{{ Address = 0; Size = 3GB; FileOffset = 0 }}; or the name of a layout: {string.Join(", ", Names.Select(static each => each.Name))}.");
}
