using System.Text.Json.Serialization;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>What a message between supervisor and worker, or between a supervisor and the one that takes over from it, is about.</summary>
internal enum ChannelMessageType
{
    /// <summary>To the worker: a file of the image that comes next, then of each layer; <see cref="ChannelMessage.Message"/> is its path.</summary>
    Image,
    /// <summary>To the worker: the record that is replayed for that image, as an open file.</summary>
    Replay,
    /// <summary>To the worker: the list (<see cref="UffdRecorder"/>) in which the touches of that image are noted.</summary>
    Record,
    /// <summary>To the worker, first: how to serve.</summary>
    Start,
    /// <summary>To the worker: an image, whose files came before.</summary>
    AddImage,
    /// <summary>To the worker: an image that no VM is served from any more.</summary>
    RemoveImage,
    /// <summary>To the worker: the images came that it begins with.</summary>
    Begin,
    /// <summary>From the worker: it has opened an image.</summary>
    ImageReady,
    /// <summary>From the worker: it cannot open an image that came later, and goes on without.</summary>
    ImageFailed,
    /// <summary>To the worker: a VM, with its connection, process, userfaultfd, state and mapping list.</summary>
    Vm,
    /// <summary>To the worker: what follows where a page of a VM cannot be read.</summary>
    SetVm,
    /// <summary>To the worker: end the service of a VM, killing its VMM or poisoning what has not come.</summary>
    StopVm,
    /// <summary>To the worker: the memory of a VM is to be exported while it runs; a connection to who does that (<see cref="LiveExportChannel"/>), the VM's memory and state, open for reading, and the fdinfo of its userfaultfd.</summary>
    Live,
    /// <summary>To the worker: end. With a <see cref="ChannelMessage.Message"/> no other process will serve the VMs, and it says why.</summary>
    Stop,
    /// <summary>To the worker, and back: a sign of life.</summary>
    Beat,
    /// <summary>From the worker: it can take VMs.</summary>
    Ready,
    /// <summary>From the worker: it cannot go on, and neither could another.</summary>
    Failed,
    /// <summary>From the worker: it serves the VM.</summary>
    Taken,
    /// <summary>From the worker: it has answered the faults of a VM that waited when it got the VM from another worker.</summary>
    CaughtUp,
    /// <summary>From the worker: something went wrong with the VM, which goes on.</summary>
    Error,
    /// <summary>From the worker: the VM has ended, or cannot be served. Its figures are final.</summary>
    Gone,
    /// <summary>From the worker: it does not serve the VM any more, whether the VM has ended or not. Its figures are final.</summary>
    Closed,
    /// <summary>To a successor: a descriptor that is kept; <see cref="ChannelMessage.Message"/> is its name.</summary>
    Kept,
    /// <summary>To a successor: everything was sent that it needs for now.</summary>
    TakeOver,
    /// <summary>From a successor: it has the VMs, and can serve them.</summary>
    Prepared,
    /// <summary>To a successor: no other process serves the VMs any more; it does from now on.</summary>
    Serve,
    /// <summary>From a successor: its worker serves every VM.</summary>
    Serving,
}

/// <summary>One message between supervisor and worker, or supervisor and successor.</summary>
internal sealed record ChannelMessage
{
    [JsonRequired]
    public ChannelMessageType Type { get; init; }

    /// <summary>Which VM.</summary>
    public int Vm { get; init; }

    /// <summary>Whether another worker had the VM before; with <see cref="ChannelMessageType.Start"/>, whether there was another.</summary>
    public bool IsUsed { get; init; }

    /// <summary>With <see cref="ChannelMessageType.Start"/>: whether another worker has the VMs, so that none of them waits.</summary>
    public bool IsSpare { get; init; }

    /// <summary>With <see cref="ChannelMessageType.Vm"/>: the features that its userfaultfd was opened with.</summary>
    public ulong Features { get; init; }

    /// <summary>With <see cref="ChannelMessageType.SetVm"/> and <see cref="ChannelMessageType.StopVm"/>.</summary>
    public UffdOnError? OnError { get; init; }

    public UffdHandlerOptions? Options { get; init; }

    /// <summary>Which image, by its name.</summary>
    public string? Image { get; init; }

    /// <summary>With <see cref="ChannelMessageType.AddImage"/>, and the answers to it: see <see cref="ServedImage.Number"/>.</summary>
    public int Number { get; init; }

    /// <summary>With <see cref="ChannelMessageType.AddImage"/>.</summary>
    public UffdImageOptions? NewImage { get; init; }

    /// <summary>With <see cref="ChannelMessageType.AddImage"/>: whether it must not be read any more; it comes without files then.</summary>
    public bool IsFailed { get; init; }

    /// <summary>The bytes of the image.</summary>
    public ulong ImageLength { get; init; }

    /// <summary>How the bytes lie in the image and its layers.</summary>
    public string? Layout { get; init; }

    /// <summary>With <see cref="ChannelMessageType.Image"/>: what the file holds.</summary>
    public ImagePart Part { get; init; }

    public string? ErrorId { get; init; }

    public string? Message { get; init; }
}

/// <summary>A VM as the memfd of its list describes it.</summary>
internal sealed record VmList
{
    public int ProcessId { get; init; }

    public uint User { get; init; }

    public uint Group { get; init; }

    [JsonRequired]
    public IReadOnlyList<GuestRegionUffdMapping> Mappings { get; init; } = [];

    // These change while the VM is served. They come last, so that what is before them stays as it is.

    /// <summary>What follows where a page cannot be read, where that is not as with all VMs of the handler.</summary>
    public UffdOnError? OnError { get; init; }

    /// <summary>The VM's name; null in a list that an older program made.</summary>
    public string? Name { get; init; }
}

[JsonSourceGenerationOptions(MaxDepth = 8, RespectNullableAnnotations = true, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull, IgnoreReadOnlyProperties = true,
    Converters =
    [
        typeof(NamedConverter<ChannelMessageType>), typeof(NamedConverter<UffdStrategy>), typeof(NamedConverter<UffdOnError>), typeof(ListConverter<string>), typeof(ListConverter<UffdImageOptions>), typeof(ListConverter<GuestRegionUffdMapping>), typeof(ListConverter<ImageIdentity>), typeof(ListConverter<HandedOverVm>),
    ])]
[JsonSerializable(typeof(string[]))]
[JsonSerializable(typeof(UffdImageOptions[]))]
[JsonSerializable(typeof(GuestRegionUffdMapping[]))]
[JsonSerializable(typeof(ChannelMessage))]
[JsonSerializable(typeof(VmList))]
[JsonSerializable(typeof(ImageIdentity[]))]
[JsonSerializable(typeof(ImageRecord))]
[JsonSerializable(typeof(HandedOverVm[]))]
[JsonSerializable(typeof(HandedOver))]
internal sealed partial class HostJson : JsonSerializerContext;
