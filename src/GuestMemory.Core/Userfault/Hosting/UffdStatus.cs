using System.Text.Json;
using System.Text.Json.Serialization;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>What a handler in a process of its own says about itself: the properties of <see cref="UffdHandler"/> at one moment.</summary>
internal sealed record UffdStatus
{
    private const int MaxFiguresBytes = 256 << 20;

    public int ProcessId { get; init; }

    public int WorkerProcessId { get; init; }

    /// <summary>How many workers were started: one, and one for each that died.</summary>
    public int WorkerCount { get; init; }

    /// <summary>Those of the only image; null where there are several.</summary>
    [JsonRequired]
    public string? SocketPath { get; init; }

    [JsonRequired]
    public string? MemoryPath { get; init; }

    /// <summary>The images; a program of before there were several says nothing of them.</summary>
    // Where JSON says nothing of it, its reader gives null.
    public IReadOnlyList<UffdImageStatus> Images { get; init => field = value ?? []; } = [];

    public UffdStrategy Strategy { get; init; }

    public UffdHandlerState State { get; init; }

    public int ConnectionCount { get; init; }

    public int TotalConnectionCount { get; init; }

    public int AbandonedCount { get; init; }

    public int? MetricsPort { get; init; }

    public UffdFigures? Figures { get; init; }

    public string? Error { get; init; }

    /// <exception cref="GuestMemoryException">ControlFailed: the file does not hold figures.</exception>
    public static UffdFigures ReadFigures(SafeDescriptor file)
    {
        try
        {
            return JsonFile.Read(file, MaxFiguresBytes, UffdControlJson.Default.UffdFigures);
        }
        catch (Exception exception) when (exception is JsonException or IOException or NotSupportedException)
        {
            throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"The figures of the handler's process cannot be read: {JsonErrorText.Of(exception)}", exception);
        }
    }
}

/// <summary>One line to the control socket. A client that waits for the end just reads on.</summary>
internal sealed record UffdControlRequest
{
    public const string Status = "status";
    public const string Figures = "figures";
    public const string Dirty = "dirty";
    public const string Cleared = "cleared";
    public const string SetVm = "set-vm";
    public const string Part = "part";
    public const string StopVm = "stop-vm";
    public const string Stop = "stop";
    public const string Wait = "wait";
    public const string Upgrade = "upgrade";
    public const string AddImage = "add-image";
    public const string RemoveImage = "remove-image";

    /// <summary>The memory of a VM that runs is to be exported: the answer has a connection to the worker (<see cref="LiveExportChannel"/>).</summary>
    public const string Live = "live";

    // The parts of a VM.
    public const string Memory = "memory";
    public const string State = "state";
    public const string Mappings = "mappings";
    public const string Image = "image";

    [JsonRequired]
    public string Request { get; init; } = "";

    /// <summary>The number of the VM that is meant; with dirty, 0 for all.</summary>
    public int Vm { get; init; }

    /// <summary>With set-vm: the VM's new name, null to keep the one that it has; with remove-image: the image's.</summary>
    public string? Name { get; init; }

    /// <summary>With set-vm: what follows where a page of the VM cannot be read, null to keep that; with stop-vm: Kill or Poison.</summary>
    public UffdOnError? OnError { get; init; }

    /// <summary>With dirty: whether what is told is clean from then on, once the answer is confirmed with cleared.</summary>
    public bool Clear { get; init; }

    /// <summary>With part: memory (the memfd that is the VM's memory), state, mappings (its mapping list), or image.</summary>
    [JsonPropertyName("part")]
    public string? WhichPart { get; init; }

    /// <summary>With cleared: the number of the answer that has arrived; with a part that is an image: which file of it, 0 for the first.</summary>
    public int Number { get; init; }

    /// <summary>With upgrade: the new program's path, and the arguments that come before the handler's.</summary>
    public IReadOnlyList<string>? Program { get; init; }

    /// <summary>With add-image: the image.</summary>
    [JsonPropertyName("options")]
    public UffdImageOptions? NewImage { get; init; }

    /// <summary>With remove-image: whether VMs that are served from it are given up.</summary>
    public bool Force { get; init; }

    /// <summary>With upgrade: the milliseconds after which the old program goes on.</summary>
    public int Timeout { get; init; }
}

/// <summary>One line from the control socket.</summary>
internal sealed record UffdControlReply
{
    /// <summary>The handler as it is now.</summary>
    public UffdStatus? Handler { get; init; }

    /// <summary>The handler has ended; these are its last figures, and nothing comes after them.</summary>
    public bool Ended { get; init; }

    /// <summary>Why it could not be done or the handler did not start: the name of a <see cref="GuestMemoryError"/>.</summary>
    public string? ErrorId { get; init; }

    public string? Message { get; init; }

    /// <summary>Of an answer that is to be confirmed; with a file of an image, how many there are.</summary>
    public int Number { get; init; }

    /// <summary>With a file of an image: its path.</summary>
    public string? Path { get; init; }

    /// <summary>With a file of an image: what it holds.</summary>
    public ImagePart Part { get; init; }

    /// <summary>Where the handler is controlled, in the report of its start.</summary>
    public string? ControlPath { get; init; }

    /// <summary>The error that it reports.</summary>
    /// <param name="otherwise">The kind of error where it names none that is known.</param>
    public GuestMemoryException ToException(GuestMemoryError otherwise = GuestMemoryError.ControlFailed) =>
        new(NamedConverter<GuestMemoryError>.TryParse(ErrorId, out var error) ? error : otherwise, Message ?? "");
}

[JsonSourceGenerationOptions(MaxDepth = 8, PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectNullableAnnotations = true, IgnoreReadOnlyProperties = true,
    Converters = [typeof(NamedConverter<UffdStrategy>), typeof(NamedConverter<UffdHandlerState>), typeof(NamedConverter<UffdOnError>), typeof(NamedConverter<UffdImageState>), typeof(ListConverter<UffdFigures>), typeof(ListConverter<UffdImageStatus>), typeof(ListConverter<string>)])]
[JsonSerializable(typeof(UffdControlRequest))]
[JsonSerializable(typeof(UffdControlReply))]
[JsonSerializable(typeof(UffdFigures))]
[JsonSerializable(typeof(UffdFigures[]))]
[JsonSerializable(typeof(UffdImageStatus[]))]
[JsonSerializable(typeof(string[]))]
internal sealed partial class UffdControlJson : JsonSerializerContext;
