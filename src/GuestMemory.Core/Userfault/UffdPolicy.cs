namespace GuestMemory.Core;

/// <summary>How the VMs of a handler are served; the same for all of them.</summary>
internal sealed class UffdPolicy : IDisposable
{
    public UffdStrategy Strategy { get; init; } = UffdStrategy.OnDemand;

    /// <summary>The bytes of the aligned block that a fault brings in; 0 for the page alone.</summary>
    public ulong Window { get; init; }

    public UffdOnError OnError { get; init; }

    public int MaxConnections { get; init; } = int.MaxValue;

    /// <summary>Whether it is tracked what VMs write.</summary>
    public bool TrackDirty { get; init; }

    /// <summary>Notes the touches; null where nobody asked.</summary>
    public UffdRecorder? Recorder { get; init; }

    /// <summary>What comes first; null where nothing does.</summary>
    public UffdReplay? Replay { get; init; }

    /// <summary>Whether everything is brought in.</summary>
    public bool FillsAll => Strategy is UffdStrategy.Background or UffdStrategy.FaultAll;

    public void Dispose() => Recorder?.Dispose();
}
