using System.Text.Json.Serialization;

namespace GuestMemory.UffdHost;

/// <summary>What a supervisor tells the one that takes over from it, besides the descriptors.</summary>
internal sealed record HandedOver
{
    /// <summary>Where it is controlled; the file is renamed for the new process.</summary>
    [JsonRequired]
    public string ControlPath { get; init; } = "";

    /// <summary>VMs that ever came.</summary>
    public int Total { get; init; }

    /// <summary>The number of the last VM.</summary>
    public int LastVm { get; init; }

    /// <summary>Workers that the VMs were given to.</summary>
    public int Workers { get; init; }

    /// <summary>The number of the last answer by which marks were taken.</summary>
    public int Taken { get; init; }

    /// <summary>What went wrong last.</summary>
    public string? Error { get; init; }

    /// <summary>What no descriptor of a VM says.</summary>
    public IReadOnlyList<HandedOverVm> Vms { get; init; } = [];
}
