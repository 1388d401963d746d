namespace GuestMemory.Core.Tests;

/// <summary>A device that serves nothing: it keeps which virtqueues run, and what was done to them.</summary>
internal sealed class RecordingDevice : IVhostUserDevice
{
    public static readonly byte[] Config = [.. Enumerable.Range(0, 64).Select(static i => (byte)i)];

    public Dictionary<int, VhostUserVring> Running { get; } = [];

    public List<string> Events { get; } = [];

    /// <summary>How many entries it has taken when it is stopped.</summary>
    public ushort Taken { get; set; }

    public ulong Features => SplitQueue.SupportedFeatures | 0x40;

    public int QueueCount { get; init; } = 2;

    public int MaxQueueSize { get; init; } = 256;

    public bool TryReadConfig(uint offset, Span<byte> destination) =>
        offset <= Config.Length && destination.Length <= Config.Length - offset && Config.AsSpan((int)offset, destination.Length).TryCopyTo(destination);

    public void StartVring(VhostUserVring vring)
    {
        Running.Add(vring.Index, vring);
        Events.Add($"start {vring.Index}");
    }

    public void StopVring(VhostUserVring vring)
    {
        Assert.True(Running.Remove(vring.Index));
        vring.NextAvailable += Taken;
        Events.Add($"stop {vring.Index}");
    }
}
