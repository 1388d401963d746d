using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// A page-fault handler: listens on a Unix socket, takes over the userfaultfds of VMs that connect, and answers their faults with
/// pages of a memory image (Firecracker's UFFD handler). It serves any number of VMs, from one image or from several, each of which has a socket; one VM's bad message or
/// death ends only its own connection. It runs in this process (<see cref="Start(UffdHandlerOptions)"/>), or in a process of its own that outlives this
/// one (<see cref="StartProcess"/>, <see cref="FindAll"/>).
/// </summary>
public abstract class UffdHandler : IDisposable
{
    /// <summary>
    /// The name of the meter (<see cref="System.Diagnostics.Metrics.Meter"/>) whose instruments have the figures of every handler of this process, for
    /// dotnet-counters or OpenTelemetry. The tags "socket" and "strategy" say of which handler; "vm" and "pid" of which VM where a figure is of one.
    /// </summary>
    public const string MeterName = "GuestMemory.Uffd";

    private protected UffdHandler()
    {
    }

    /// <summary>A number that tells handlers apart: that of its process, or a count where it runs in this one.</summary>
    public abstract int Id { get; }

    // Without annotation: who started a handler with one image need not look whether it has several.
#nullable disable annotations
    /// <summary>Where it listens; null where it serves several images (<see cref="Images"/>).</summary>
    public abstract string SocketPath { get; }

    /// <summary>The image it serves; null where it serves several.</summary>
    public abstract string MemoryPath { get; }
#nullable restore annotations

    /// <summary>The images that it serves, in the order in which they were added.</summary>
    public abstract IReadOnlyList<UffdImage> Images { get; }

    /// <summary>How it answers faults.</summary>
    public abstract UffdStrategy Strategy { get; }

    /// <summary>What it does now.</summary>
    public abstract UffdHandlerState State { get; }

    /// <summary>The process it belongs to: this one, or the supervisor that starts another worker when one dies.</summary>
    public abstract int ProcessId { get; }

    /// <summary>The process that answers the faults.</summary>
    public abstract int WorkerProcessId { get; }

    /// <summary>How many workers were started: 1, and one more for each that died. 0 where the handler runs in this process.</summary>
    public abstract int WorkerCount { get; }

    /// <summary>VMs served now.</summary>
    public abstract int ConnectionCount { get; }

    /// <summary>VMs that ever handed their memory over.</summary>
    public abstract int TotalConnectionCount { get; }

    /// <summary>VMs that were still running when the handler was stopped: each waits for ever at the next page that it misses.</summary>
    public abstract int AbandonedCount { get; }

    /// <summary>Faults answered since the start. A thread that waited for a page may see the page before the fault is counted.</summary>
    public abstract long FaultCount { get; }

    /// <summary>Bytes copied out of the image since the start.</summary>
    public abstract long ByteCount { get; }

    /// <summary>The time from reading a fault to its answer that half of them stayed below.</summary>
    public abstract TimeSpan LatencyP50 { get; }

    /// <summary>The same for 99 of 100.</summary>
    public abstract TimeSpan LatencyP99 { get; }

    /// <summary>The longest.</summary>
    public abstract TimeSpan LatencyMax { get; }

    /// <summary>The port at which metrics are served; null where none are.</summary>
    public abstract int? MetricsPort { get; }

    /// <summary>What went wrong last, of the handler or one of its connections; null where nothing did.</summary>
    public abstract string? Error { get; }

    /// <summary>Opens the image and the socket and starts serving on a thread of this process. When it returns, VMs can connect.</summary>
    /// <exception cref="GuestMemoryException">ImageNotFound, ImageUnreadable, SocketPathTooLong, NotASocket, SocketInUse, SocketNotFound, InsecureDirectory, UserNotFound.</exception>
    public static UffdHandler Start(UffdHandlerOptions options) => LocalUffdHandler.Start(options);

    /// <summary>
    /// The same with memory of this process in place of an image: each page is handed on as it is when it is needed. The regions
    /// stay mapped as long as the handler runs.
    /// </summary>
    /// <exception cref="GuestMemoryException">As above; RegionInUse: a page-fault handler serves the memory itself.</exception>
    public static UffdHandler Start(UffdHandlerOptions options, GuestMemoryMmap memory) => LocalUffdHandler.Start(options, memory);

    /// <summary>The same with a source, which is taken over.</summary>
    internal static UffdHandler Start(UffdHandlerOptions options, PageSource source) => LocalUffdHandler.Start(options, source);

    /// <summary>
    /// Starts a handler in a process of its own, which goes on when this one ends; when it returns, VMs can connect. A second
    /// process, its worker, answers the faults; when that one dies another takes its place and no VM is lost.
    /// </summary>
    /// <exception cref="GuestMemoryException">As <see cref="Start(UffdHandlerOptions)"/>; UserDenied; HandlerStartFailed where the process cannot be started.</exception>
    /// <exception cref="OperationCanceledException">Cancelled before the handler listened; its process has ended again.</exception>
    public static UffdHandler StartProcess(UffdHandlerOptions options, CancellationToken cancellation = default) => RemoteUffdHandler.Start(options, cancellation);

    /// <summary>
    /// The handlers of this user that run in processes of their own, whoever started them. A handler is the same object each time.
    /// Control sockets that dead handlers have left behind are taken away.
    /// </summary>
    public static IReadOnlyList<UffdHandler> FindAll() => RemoteUffdHandler.FindAll();

    /// <summary>Everything that was counted, for all VMs together and for each that is served now.</summary>
    public abstract UffdFigures GetFigures();

    /// <summary>The VMs that are served now; none once the handler has ended.</summary>
    /// <exception cref="GuestMemoryException">ControlFailed: the handler's process does not answer.</exception>
    public IReadOnlyList<UffdServedVm> GetVms()
    {
        if (State is UffdHandlerState.Stopped or UffdHandlerState.Failed) return [];
        var vms = GetFigures().Vms;
        var images = Images;
        // A program of before there were several images does not say of which a VM is.
        return [.. vms.Select(vm => new UffdServedVm(this, images.FirstOrDefault(image => vm.Image is null || image.Name == vm.Image), vm))];
    }

    /// <summary>
    /// Serves one more image: opens the file and the socket as the user that the handler runs as. When it returns, VMs can connect there. Everything that is said of
    /// the handler as a whole (strategy, limits, users) holds for it too.
    /// </summary>
    /// <exception cref="GuestMemoryException">NameInUse: the handler has an image of that name, socket or record; ValueNotSupported; as <see cref="Start(UffdHandlerOptions)"/>; HandlerGone; ControlFailed.</exception>
    /// <exception cref="OperationCanceledException">Cancelled; the image is added all the same where nothing is wrong with it.</exception>
    public UffdImage AddImage(UffdImageOptions image, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(image);
        image.Check([]);
        Add(image, cancellation);
        return Images.FirstOrDefault(added => added.Name == image.Name) ?? throw UffdImage.NotFound(image.Name, Place);
    }

    /// <summary>Where it listens, for messages.</summary>
    internal string Place => SocketPath ?? PlaceOf([.. Images.Select(static image => image.SocketPath)]);

    internal static string PlaceOf(IReadOnlyList<string> sockets) => sockets.Count switch
    {
        0 => "no socket",
        1 => sockets[0],
        2 => $"{sockets[0]} and {sockets[1]}",
        _ => $"{sockets[0]} and {sockets.Count - 1} more sockets",
    };

    /// <summary>Serves one more image, which was checked.</summary>
    internal abstract void Add(UffdImageOptions image, CancellationToken cancellation);

    /// <summary>Begins to take an image away; it is gone when it is no more among <see cref="Images"/>.</summary>
    internal abstract void RemoveImage(string name, bool force);

    /// <summary>
    /// What each VM wrote since its memory was handed over, or gave back: a bitmap for each of its regions, in the order of their
    /// mappings. Addresses are offsets in the image; the handler does not know any other.
    /// </summary>
    /// <param name="clear">
    /// Takes the marks: the next call tells what was written or given back after this one. No write is in neither; a page whose first
    /// write is under way, or whose removal, may be in both. Where a handler's process dies meanwhile, or its answer does not arrive, the next call tells
    /// again what was taken.
    /// </param>
    /// <exception cref="GuestMemoryException">DirtyTrackingOff; UffdUnsupported; HandlerGone: the handler has ended; ControlFailed: its process does not answer.</exception>
    public IReadOnlyList<DirtyBitmap> GetDirtyBitmaps(bool clear = false) => GetDirtyBitmapsOf(null, clear);

    /// <summary>The same of one VM, whose marks alone are taken; null for all VMs.</summary>
    internal abstract IReadOnlyList<DirtyBitmap> GetDirtyBitmapsOf(int? vm, bool clear);

    /// <summary>Gives a VM a name that was checked, or has something else follow where a page of it cannot be read, where that is not null.</summary>
    internal abstract void SetVm(int id, string? name, UffdOnError? onError);

    /// <summary>Has the service of a VM end as the action (Kill or Poison) says; <see cref="HasVm"/> says when it has.</summary>
    internal abstract void StopVm(int id, UffdOnError action);

    /// <summary>What the memory of a VM is read by; the caller's.</summary>
    internal abstract UffdVmFiles OpenFiles(int id);

    /// <summary>Begins to export the memory of a VM that runs to a file, which stays the caller's.</summary>
    internal abstract UffdLiveExport BeginLive(int id, SafeFileHandle output);

    /// <summary>Whether it serves a VM, or is about to end that.</summary>
    internal abstract bool HasVm(int id);

    internal static GuestMemoryException NotTracking(string path) =>
        new(GuestMemoryError.DirtyTrackingOff, $"The handler at {path} does not track what VMs write: it was started without TrackDirty.");

    /// <summary>Waits until the handler has ended; false when the time is over first.</summary>
    public abstract bool Wait(TimeSpan timeout, CancellationToken cancellation = default);

    /// <summary>
    /// Stops serving, takes the socket away and closes every userfaultfd. A VM that still runs keeps its own duplicate, and waits
    /// for ever at the next page that it misses.
    /// </summary>
    /// <exception cref="GuestMemoryException">ControlFailed: the handler's process does not answer.</exception>
    public abstract void Stop();

    /// <summary>
    /// Hands every VM, and every client of the control socket, to a new process that runs the program of this library's installation. The old process ends when
    /// the new one has answered that it serves; where the new one cannot, the old one goes on, and no VM notices. The figures go on, <see cref="ProcessId"/> and <see cref="Id"/> change.
    /// </summary>
    /// <param name="timeout">How long the new program may take to start.</param>
    /// <param name="cancellation">Gives up waiting; the upgrade goes on.</param>
    /// <exception cref="GuestMemoryException">UpgradeFailed: the old process goes on, and the message says why; HandlerGone; ControlFailed: the handler's process does not answer.</exception>
    public abstract void Upgrade(TimeSpan timeout, CancellationToken cancellation = default);

    /// <summary>Stops a handler of this process; lets go of one in a process of its own, which goes on.</summary>
    public void Dispose()
    {
        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    /// <summary>Where it listens.</summary>
    public sealed override string ToString() => Place;

    /// <summary>Frees what the handler holds.</summary>
    private protected abstract void Dispose(bool disposing);
}
