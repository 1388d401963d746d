namespace GuestMemory.Core.Kvm;

/// <summary>What can happen to a memory balloon.</summary>
public enum BalloonEventKind
{
    /// <summary>It grew: the range is freed on the host.</summary>
    Inflate,

    /// <summary>It shrank: the host allocates the range again when the guest touches it.</summary>
    Deflate,

    /// <summary>It has the size that was asked for.</summary>
    TargetReached,
}
