using System.Globalization;
using System.Management.Automation;
using System.Runtime.InteropServices;
using GuestMemory.Core;
using GuestMemory.Core.Kvm;
using GuestMemory.Core.VmControl;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.PowerShell.Binding;

/// <summary>An open file of a request: a region, a handle, a stream, an event, a path, or the number of a descriptor of this process.</summary>
public sealed class DescriptorArgument
{
    private DescriptorArgument(object value) => Value = value;

    /// <summary>The region, where it is one.</summary>
    public GuestRegionMmap? Region => Value as GuestRegionMmap;

    /// <summary>The number, where it is one: of a descriptor, or an address.</summary>
    public ulong? Number => Value as ulong?;

    /// <summary>Where in the file what is meant begins, in bytes.</summary>
    public ulong Start => Region?.FileOffset ?? 0;

    /// <summary>A region, a SafeHandle, a full path, or a number.</summary>
    private object Value { get; }

    /// <inheritdoc/>
    public override string ToString() => Value.ToString() ?? "";

    internal static DescriptorArgument From(object? input, Func<string, string> resolve)
    {
        var value = input is PSObject wrapped ? wrapped.BaseObject : input;
        return value switch
        {
            DescriptorArgument argument => argument,
            GuestRegionMmap or SafeHandle => new DescriptorArgument(value),
            FileStream stream => new DescriptorArgument(stream.SafeFileHandle),
            IoEvent ioEvent => new DescriptorArgument(ioEvent.Handle),
            SharedMemory memory => new DescriptorArgument(memory.Descriptor),
            FileInfo file => new DescriptorArgument(file.FullName),
            string { Length: > 0 } path => new DescriptorArgument(resolve(path)),
            sbyte or byte or short or ushort or int or uint or long or ulong or nint => new DescriptorArgument(NumberText.Parse(value is nint number ? (long)number : input)),
            _ => throw new FormatException($"'{input}' is not an open file. Give a region, a path, a SafeHandle or FileStream, or the number of a descriptor of this process."),
        };
    }

    /// <summary>The open file. What had to be opened for it is added to a list.</summary>
    internal SafeHandle Open(bool writable, ICollection<IDisposable> opened)
    {
        switch (Value)
        {
            case GuestRegionMmap region:
                if (region.IsDisposed) throw new GuestMemoryException(GuestMemoryError.RegionDisposed, $"Region {region} was removed; its memory is no longer mapped.");
                return region.GetFileOffset()?.File ?? throw new GuestMemoryException(GuestMemoryError.ValueNotSupported,
                    $"Region {region} is anonymous memory, which has no file that could be passed. Make it with 'New-MmapRegion -Memfd' or -BackingPath.");
            case string path:
                var file = SharedMemory.Open(path, writable).Descriptor;
                opened.Add(file);
                return file;
            case ulong number:
                if (number > int.MaxValue) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, string.Create(CultureInfo.InvariantCulture, $"{number} is not the number of a descriptor."));
                return new SafeFileHandle((nint)number, ownsHandle: false);
            default:
                return (SafeHandle)Value;
        }
    }

    /// <summary>The bytes from an offset to the end.</summary>
    internal ulong LengthFrom(ulong offset, SafeHandle? file)
    {
        var length = Region is { } region ? region.Size : SharedMemory.FromFile(file!).Size;
        return offset < length ? length - offset : throw new GuestMemoryException(GuestMemoryError.ValueNotSupported,
            length == 0 ? $"{this} has no length. Give -Size." : $"The offset {offset} is not before the end of {this}, which has {length} bytes.");
    }
}
