using System.Globalization;
using System.Text.Json.Serialization;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>What a supervisor knows of the image and its layers, and a service manager keeps for the next one.</summary>
internal sealed record ImageRecord
{
    /// <summary>The image, then the layers, the oldest first, each with the file of its bits behind it where there is one; at the end a record with pages.</summary>
    [JsonRequired]
    public IReadOnlyList<ImageIdentity> Files { get; init; } = [];

    /// <summary>How the bytes lie in them, as the first worker said; null before.</summary>
    public string? Layout { get; init; }

    /// <summary>The image, where it has a name: it may have been added while the handler ran. Null for that of a handler that was started with one.</summary>
    public UffdImageOptions? Options { get; init; }
}

/// <summary>A file and the state it is in. Times are nanoseconds since 1970.</summary>
internal sealed record ImageIdentity
{
    [JsonRequired]
    public string Path { get; init; } = "";

    public uint DeviceMajor { get; init; }

    public uint DeviceMinor { get; init; }

    public ulong Inode { get; init; }

    public ulong Size { get; init; }

    public long Written { get; init; }

    /// <summary>What it holds.</summary>
    public ImagePart Part { get; init; }

    public static ImageIdentity Of(ImageFile file)
    {
        var status = FileStatus.Get(file.Descriptor);
        return new ImageIdentity
        {
            Path = file.Path,
            DeviceMajor = status.stx_dev_major,
            DeviceMinor = status.stx_dev_minor,
            Inode = status.stx_ino,
            Size = status.stx_size,
            Written = status.stx_mtime.Nanoseconds,
            Part = file.Part,
        };
    }

    /// <summary>For people.</summary>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture,
        $"inode {Inode} of device {DeviceMajor}:{DeviceMinor}, {Size} bytes, written {DateTime.UnixEpoch.AddTicks(Written / 100):yyyy-MM-dd HH:mm:ss.fffffff}");
}
