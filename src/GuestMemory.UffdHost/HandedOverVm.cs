using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>What a supervisor tells of a VM to the one that takes over from it, besides the descriptors.</summary>
internal sealed record HandedOverVm
{
    public int Vm { get; init; }

    /// <summary>See <see cref="VmRecord.Error"/>.</summary>
    public string? Error { get; init; }

    /// <summary>See <see cref="VmRecord.Order"/>.</summary>
    public UffdOnError? Order { get; init; }

    /// <summary>See <see cref="VmRecord.TakenBy"/>.</summary>
    public int TakenBy { get; init; }
}
