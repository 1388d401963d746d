using System.Collections;
using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A part of a file that is mapped over a part of shared memory, as it was given.</summary>
public sealed class FileMappingArgument
{
    private static readonly string[] s_names = ["File", "Length", "MemOffset", "FileOffset"];

    private readonly DescriptorArgument _file;
    private readonly ulong? _length;
    private readonly ulong _memOffset;
    private readonly ulong? _fileOffset;

    private FileMappingArgument(DescriptorArgument file, ulong? length, ulong memOffset, ulong? fileOffset)
    {
        _file = file;
        _length = length;
        _memOffset = memOffset;
        _fileOffset = fileOffset;
    }

    internal static FileMappingArgument From(object? input, Func<string, string> resolve)
    {
        var value = input is PSObject wrapped ? wrapped.BaseObject : input;
        if (value is FileMappingArgument argument) return argument;
        var members = value is IDictionary dictionary
            ? dictionary.Keys.Cast<object>().Select(key => (Name: $"{key}", Value: dictionary[key]))
            : value is null or string || value.GetType().IsPrimitive ? [] : new PSObject(input).Properties.Select(property => (property.Name, (object?)property.Value));
        var known = new Dictionary<string, object?>(StringComparer.OrdinalIgnoreCase);
        foreach (var (name, member) in members) known[name.Replace("_", "", StringComparison.Ordinal)] = member;
        if (!known.TryGetValue("File", out var file) || Array.Find([.. known.Keys], name => !s_names.Contains(name, StringComparer.OrdinalIgnoreCase)) is not null)
            throw new FormatException($"'{input}' is not a file mapping. Write @{{ File = 'path'; Length = 4KiB; MemOffset = 0; FileOffset = 0 }}; all but File may be left out.");
        return new FileMappingArgument(DescriptorArgument.From(file, resolve), Number("Length"), Number("MemOffset") ?? 0, Number("FileOffset"));

        ulong? Number(string name) => known.TryGetValue(name, out var number) ? NumberText.Parse(number) : null;
    }

    internal VmMemoryFileMapping Open(ICollection<IDisposable> opened)
    {
        var file = _file.Open(writable: false, opened);
        var offset = _fileOffset ?? _file.Start;
        var length = _length ?? _file.LengthFrom(_file.Region is null ? offset : offset - Math.Min(offset, _file.Start), file);
        return new VmMemoryFileMapping(file, length, _memOffset, offset);
    }
}

/// <summary>Parameters that take file mappings: hashtables, or objects with the same members.</summary>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public sealed class FileMappingAttribute : ArgumentTransformationAttribute
{
    /// <inheritdoc/>
    public override object Transform(EngineIntrinsics engineIntrinsics, object inputData) => DescriptorAttribute.Guard(() =>
    {
        var value = inputData is PSObject wrapped ? wrapped.BaseObject : inputData;
        return value is IEnumerable many and not string and not IDictionary ? many.Cast<object>().Select(One).ToArray() : new[] { One(inputData) };

        FileMappingArgument One(object input) => FileMappingArgument.From(input, path => DescriptorAttribute.Resolve(engineIntrinsics, path));
    });
}
