using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <summary>A virtqueue that runs: what a device needs to serve it. It belongs to the connection.</summary>
public sealed class VhostUserVring
{
    private readonly VhostUserLog _log;
    private readonly BitmapMmapRegion _usedRingBitmap = new();

    // Where the log has the writes to the used ring; null where they are not logged.
    private readonly GuestAddress? _usedRingLog;
    private SafeDescriptor? _call;
    private SafeDescriptor? _error;

    // End the connection, and release its memory where the front end has ended; null without one.
    private readonly Action<Exception>? _fail;
    private readonly Action? _releaseMemory;

    internal VhostUserVring(int index, GuestMemoryMmap memory, VhostUserVringState state, VhostUserVringAddresses addresses, ulong features, VhostUserLog log,
        Action<Exception>? fail = null, Action? releaseMemory = null)
    {
        Index = index;
        Memory = memory;
        Size = state.Size;
        NextAvailable = state.NextAvailable;
        DescriptorTable = addresses.DescriptorTable;
        AvailableRing = addresses.AvailableRing;
        UsedRing = addresses.UsedRing;
        _usedRingLog = addresses.UsedRingLog;
        Features = features;
        Kick = state.Kick!;
        _call = state.Call;
        _error = state.Error;
        _log = log;
        _fail = fail;
        _releaseMemory = releaseMemory;
    }

    /// <summary>The number of the virtqueue, from 0.</summary>
    public int Index { get; }

    /// <summary>The memory of the VM.</summary>
    public GuestMemoryMmap Memory { get; }

    /// <summary>The number of descriptors: a power of two.</summary>
    public int Size { get; }

    /// <summary>The guest address of the descriptor table.</summary>
    public GuestAddress DescriptorTable { get; }

    /// <summary>The guest address of the available ring.</summary>
    public GuestAddress AvailableRing { get; }

    /// <summary>The guest address of the used ring.</summary>
    public GuestAddress UsedRing { get; }

    /// <summary>The virtio features that the front end has accepted, as bits.</summary>
    public ulong Features { get; }

    /// <summary>The index of the next entry of the available ring, counted without end (16 bits). The device sets it when it stops.</summary>
    public ushort NextAvailable { get; set; }

    /// <summary>The eventfd that the guest signals where there are new entries in the available ring.</summary>
    public SafeDescriptor Kick { get; }

    /// <summary>Tells the guest that there are new entries in the used ring (SET_VRING_CALL); nothing where the guest polls.</summary>
    public void SignalCall() => Signal(ref _call);

    /// <summary>Tells the front end that something is wrong with the virtqueue (SET_VRING_ERR).</summary>
    public void SignalError() => Signal(ref _error);

    /// <summary>
    /// Says that the virtqueue cannot be served any more: tells the front end, and ends the connection, whose <see cref="VhostUserConnection.Run"/>
    /// throws the reason. The device stops to access the memory, and waits until it is stopped.
    /// </summary>
    /// <param name="why">The reason.</param>
    public void Fail(Exception why)
    {
        ArgumentNullException.ThrowIfNull(why);
        SignalError();
        _fail?.Invoke(why);
    }

    /// <summary>Marks bytes of the used ring in the log. The device has written them.</summary>
    /// <param name="offset">The first byte, from the start of the used ring.</param>
    /// <param name="length">How many.</param>
    public void MarkUsedRing(ulong offset, ulong length)
    {
        _usedRingBitmap.MarkDirty(offset, length);
        _log.SignalChange();
    }

    /// <summary>The virtqueue, for debuggers.</summary>
    public override string ToString() => $"vring {Index}, {Size} descriptors at {DescriptorTable}";

    /// <summary>The tracker of the used ring in a log; null where it is not logged.</summary>
    /// <exception cref="GuestMemoryException">InvalidLog: the log does not reach to it.</exception>
    internal AtomicBitmapMmap? TrackerIn(MmapLogReg log) =>
        _usedRingLog is { } start ? new AtomicBitmapMmap(start, VhostUserVringState.UsedRingBytes(Size), log) : null;

    internal void SetTracker(AtomicBitmapMmap? tracker) => _usedRingBitmap.Replace(tracker);

    /// <summary>What the front end keeps of the requests that were taken and not returned; null where it does not.</summary>
    internal InflightQueue? Inflight { get; init; }

    /// <summary>Whether an access to the memory may wait until the front end provides a page: the VM arrives by a post-copy migration.</summary>
    internal bool MayWait => Memory.Regions.Any(static region => region.Memory.MayWait);

    /// <summary>Has the device's threads go on where a front end makes them wait: for room in a descriptor, or for a page that never comes.</summary>
    internal void LetThreadsGo()
    {
        foreach (var descriptor in new[] { Volatile.Read(ref _call), Volatile.Read(ref _error) })
        {
            if (descriptor is not null) EventFd.LetWritersGo(descriptor);
        }

        _log.LetSignalsGo();
        _releaseMemory?.Invoke();
    }

    internal void SetCall(SafeDescriptor? call) => Volatile.Write(ref _call, call);

    internal void SetError(SafeDescriptor? error) => Volatile.Write(ref _error, error);

    private static void Signal(ref SafeDescriptor? place)
    {
        while (Volatile.Read(ref place) is { } descriptor)
        {
            try
            {
                EventFd.SignalShared(descriptor);
                return;
            }
            catch (ObjectDisposedException) when (Volatile.Read(ref place) != descriptor)
            {
                // The connection has replaced it.
            }
        }
    }
}
