using System.Text.Json.Serialization;

namespace GuestMemory.Core.Userfault;

/// <summary>One line from who exports a VM that runs to the worker that serves it.</summary>
internal sealed record LiveRequest
{
    /// <summary>With a descriptor: the file.</summary>
    public const string Begin = "begin";
    public const string Protect = "protect";
    public const string Take = "take";
    public const string Sweep = "sweep";

    [JsonRequired]
    public string Request { get; init; } = "";
}

/// <summary>One line back.</summary>
internal sealed record LiveReply
{
    /// <summary>Whether what was asked for is done; else it goes on, and so far it is.</summary>
    public bool IsDone { get; init; }

    /// <summary>How many bytes of the memory are copied.</summary>
    public ulong Copied { get; init; }

    /// <summary>At the end: the bytes and pages that were written.</summary>
    public ulong Bytes { get; init; }

    public long Pages { get; init; }

    /// <summary>Why it failed: the name of a <see cref="GuestMemoryError"/>, or empty where the file could not be written; null where it did not.</summary>
    public string? ErrorId { get; init; }

    public string? Message { get; init; }

    /// <summary>Where the file could not be written: the number of that (<see cref="Exception.HResult"/>), an errno where the kernel said so; 0 from a worker that does not say it.</summary>
    public int ErrorNumber { get; init; }
}

[JsonSourceGenerationOptions(MaxDepth = 4, PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectNullableAnnotations = true)]
[JsonSerializable(typeof(LiveRequest))]
[JsonSerializable(typeof(LiveReply))]
internal sealed partial class LiveJson : JsonSerializerContext;
