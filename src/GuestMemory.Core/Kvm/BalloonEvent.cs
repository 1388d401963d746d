namespace GuestMemory.Core.Kvm;

/// <summary>What a memory balloon reports (crosvm's BalloonEvent).</summary>
/// <param name="Kind">What happened.</param>
/// <param name="Address">The first guest physical address; 0 for TargetReached.</param>
/// <param name="Size">The bytes of the range, or the size that was reached.</param>
public readonly record struct BalloonEvent(BalloonEventKind Kind, GuestAddress Address, ulong Size)
{
    /// <summary>The guest gave a range back.</summary>
    public static BalloonEvent Inflate(GuestAddress address, ulong size) => new(BalloonEventKind.Inflate, address, size);

    /// <summary>The guest wants a range again.</summary>
    public static BalloonEvent Deflate(GuestAddress address, ulong size) => new(BalloonEventKind.Deflate, address, size);

    /// <summary>The balloon is as large as it was asked to be.</summary>
    public static BalloonEvent TargetReached(ulong size) => new(BalloonEventKind.TargetReached, default, size);
}
