using GuestMemory.Core.Images;

namespace GuestMemory.Core.Userfault;

/// <summary>What a page-fault handler serves, where, and for whom.</summary>
public sealed record UffdHandlerOptions
{
    internal static readonly TimeSpan DefaultSourceTimeout = TimeSpan.FromSeconds(5);
    internal static readonly TimeSpan MaxSourceTimeout = TimeSpan.FromSeconds(1e6);

    private const int MaxImages = 256;

    /// <summary>Where the handler listens; at most 107 bytes. Empty where <see cref="Images"/> are given.</summary>
    // Where JSON says nothing of it, its reader gives null.
    public string SocketPath { get; init => field = value ?? ""; } = "";

    /// <summary>
    /// The memory image: the VM's regions, one behind the other; or an image of chunks (<see cref="ChunkedImage"/>). Empty where
    /// <see cref="Images"/> are given.
    /// </summary>
    public string MemoryPath { get; init => field = value ?? ""; } = "";

    /// <summary>
    /// Several images, each with a name and a socket of its own, in place of <see cref="SocketPath"/>, <see cref="MemoryPath"/>,
    /// <see cref="LayerPaths"/>, <see cref="RecordPath"/> and <see cref="ReplayPath"/>; at most 256. Everything else is the same for all of them, and limits
    /// (<see cref="FillRate"/>, <see cref="MemoryLimit"/>, <see cref="MaxConnections"/>) are those of all together.
    /// </summary>
    public IReadOnlyList<UffdImageOptions> Images { get; init => field = value ?? []; } = [];

    /// <summary>Sparse files of the image's length with the changes of later snapshots, the oldest first; the last one that has a page is right.</summary>
    // Where JSON says nothing of it, its reader gives null.
    public IReadOnlyList<string> LayerPaths { get; init => field = value ?? []; } = [];

    /// <summary>How faults are answered.</summary>
    public UffdStrategy Strategy { get; init; }

    /// <summary>The bytes of the block that a fault brings in with <see cref="UffdStrategy.Window"/>: a power of two of pages.</summary>
    public ulong WindowSize { get; init; } = 64 << 10;

    /// <summary>
    /// Writes which pages are touched first, in their order, to this file. With <see cref="UffdStrategy.OnDemand"/> these are all that a VM touches; with
    /// <see cref="UffdStrategy.Background"/> those that it touched before they were filled ahead, or as a part of <see cref="ReplayPath"/>: the pages that it
    /// waited for. A userfaultfd reports no touch of a page that has come.
    /// </summary>
    public string? RecordPath { get; init; }

    /// <summary>Brings the pages of such a file in first; with <see cref="UffdStrategy.Replay"/>, Background or FaultAll.</summary>
    public string? ReplayPath { get; init; }

    /// <summary>
    /// Does not read the image ahead. Otherwise, from the first VM on, it is brought into the page cache at the idle priority of disks, so
    /// that a fault rarely waits for one.
    /// </summary>
    public bool NoReadAhead { get; init; }

    /// <summary>
    /// How many bytes a second all fills of the handler together bring in, with <see cref="UffdStrategy.Background"/>, FaultAll or Replay; 0
    /// for as many as they can. Faults are answered at once whatever it is.
    /// </summary>
    public ulong FillRate { get; init; }

    /// <summary>
    /// How many bytes of the image the fills of the handler may bring in for all VMs that it serves together; 0 for any number. What is missing then
    /// comes by faults alone, and the state is <see cref="UffdHandlerState.Limited"/>, until a VM ends.
    /// </summary>
    public ulong MemoryLimit { get; init; }

    /// <summary>What follows where a page cannot be read.</summary>
    public UffdOnError OnError { get; init; }

    /// <summary>
    /// How long a page that cannot be read is tried again, after 10 ms and then less and less often, before <see cref="OnError"/> follows: 0 to
    /// 1,000,000 s. The default, 5 s, is longer than the reset of a controller or the failover of a path, and shorter than the 20 s after which a
    /// guest's kernel takes its processor for hung. Other faults of the VM, and other VMs, do not wait for it.
    /// </summary>
    public TimeSpan SourceTimeout { get; init; } = DefaultSourceTimeout;

    /// <summary>
    /// A user, by name or number, as which the handler's processes run from the moment on when socket, image and control socket are open; null for the
    /// one that starts it. Needs root, and a handler in a process of its own. Its processes may connect, as those of a handler's user always may.
    /// </summary>
    public string? User { get; init; }

    /// <summary>Further users, by name or number, whose processes may connect; this one's and root's always may.</summary>
    // Where JSON says nothing of it, its reader gives null.
    public IReadOnlyList<string> AllowUser { get; init => field = value ?? []; } = [];

    /// <summary>Groups, by name or number, whose members' processes may connect.</summary>
    public IReadOnlyList<string> AllowGroup { get; init => field = value ?? []; } = [];

    /// <summary>Replaces a socket that nobody answers on and listens also in a directory where everyone may replace it.</summary>
    public bool Force { get; init; }

    /// <summary>
    /// Write-protects every page that comes, and so learns what a VM writes: <see cref="UffdHandler.GetDirtyBitmaps"/>. Each first
    /// write of a page costs the VM another fault, unless the VMM asked the kernel to resolve those by itself (WP_ASYNC).
    /// </summary>
    public bool TrackDirty { get; init; }

    /// <summary>How many VMMs may be connected, and how many VMs served, at once; a further one is turned away. A connection brings at most 64 VMs.</summary>
    public int MaxConnections { get; init; } = int.MaxValue;

    /// <summary>Serves metrics (OpenMetrics text at /metrics) at this port of 127.0.0.1; 0 for any that is free.</summary>
    public int? MetricsPort { get; init; }

    /// <summary>Serves metrics at this Unix socket, where no port is given.</summary>
    public string? MetricsPath { get; init; }

    /// <summary>How long the first VMM may take to connect; null for ever. When it is over the handler fails.</summary>
    public TimeSpan? AcceptTimeout { get; init; }

    /// <summary>How long a VMM that has connected may take to hand its memory over.</summary>
    public TimeSpan HandoverTimeout { get; init; } = TimeSpan.FromSeconds(5);

    /// <summary>The only image where <see cref="Images"/> are not used. Its name is that of the socket's file.</summary>
    internal UffdImageOptions OnlyImage => new()
    {
        Name = UffdVmName.Clean(Path.GetFileNameWithoutExtension(SocketPath)) ?? "image",
        SocketPath = SocketPath,
        MemoryPath = MemoryPath,
        LayerPaths = LayerPaths,
        RecordPath = RecordPath,
        ReplayPath = ReplayPath,
    };

    /// <summary>All images, in whichever way they are given.</summary>
    /// <exception cref="GuestMemoryException">ValueNotSupported, NameInUse.</exception>
    internal IReadOnlyList<UffdImageOptions> AllImages()
    {
        if (Images.Count == 0)
        {
            if (SocketPath.Length == 0 || MemoryPath.Length == 0) throw Refuse("A handler needs the path of its socket and that of its image (SocketPath, MemoryPath), or several images (Images).");
            return [OnlyImage];
        }

        if (SocketPath.Length > 0 || MemoryPath.Length > 0 || LayerPaths.Count > 0 || RecordPath is not null || ReplayPath is not null)
            throw Refuse("Where images are given by their names (Images), each has its own socket, layers and records; SocketPath, MemoryPath, LayerPaths, RecordPath and ReplayPath of the handler are of no image then.");
        if (Images.Count > MaxImages) throw Refuse($"{Images.Count} images are more than the {MaxImages} that one handler serves.");
        for (var i = 0; i < Images.Count; i++) Images[i].Check(Images.Take(i));
        return Images;
    }

    /// <summary>Checks whether an image may be added to others.</summary>
    /// <exception cref="GuestMemoryException">ValueNotSupported, NameInUse.</exception>
    internal static void CheckAdded(UffdImageOptions added, IReadOnlyCollection<UffdImageOptions> others)
    {
        if (others.Count >= MaxImages) throw Refuse($"The handler serves {others.Count} images; it can serve no more.");
        added.Check(others);
    }

    private static GuestMemoryException Refuse(string why) => new(GuestMemoryError.ValueNotSupported, why);
}
