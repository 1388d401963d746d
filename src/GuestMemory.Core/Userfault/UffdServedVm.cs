using System.Diagnostics;
using GuestMemory.Core.Images;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Processes;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// A VM that a page-fault handler serves, as it was at one moment: <see cref="UffdHandler.GetVms"/> gives it anew. What is asked of it goes to
/// its handler, and fails with VmNotFound once the handler serves it no more. Safe from any thread.
/// </summary>
public sealed class UffdServedVm
{
    private static readonly TimeSpan s_vmmLimit = TimeSpan.FromSeconds(5);
    private static readonly TimeSpan s_stopTimeout = TimeSpan.FromSeconds(30);
    private static readonly TimeSpan s_pause = TimeSpan.FromMilliseconds(10);

    /// <param name="handler">The handler that serves it.</param>
    /// <param name="image">The image that it is served from; null where that has gone meanwhile.</param>
    /// <param name="figures">What was counted for it.</param>
    internal UffdServedVm(UffdHandler handler, UffdImage? image, UffdFigures figures)
    {
        Handler = handler;
        Figures = figures;
        Image = image?.Name ?? figures.Image ?? "";
        SocketPath = image?.SocketPath ?? handler.Place;
        Strategy = handler.Strategy;
        State = handler.State == UffdHandlerState.Recovering ? UffdVmCondition.Recovering
            : figures.MissingPageCount == 0 ? UffdVmCondition.Restored
            : figures.IsLimited ? UffdVmCondition.Limited : UffdVmCondition.Serving;
    }

    /// <summary>The number, which no other VM of its handler has.</summary>
    public int Id => Figures.VmId;

    /// <summary>
    /// The name, which no other VM of its handler has: that of the systemd unit or control group that the VMM runs in, else that of the handler's
    /// socket with the number; or as it was renamed.
    /// </summary>
    public string Name => Figures.VmName ?? "";

    /// <summary>The handler that serves it.</summary>
    public UffdHandler Handler { get; }

    /// <summary>The image that it is served from, by its name.</summary>
    public string Image { get; }

    /// <summary>Where its VMM connected.</summary>
    public string SocketPath { get; }

    /// <summary>The VMM's process.</summary>
    public int ProcessId => Figures.ProcessId;

    /// <summary>What its handler does for it.</summary>
    public UffdVmCondition State { get; }

    /// <summary>How its faults are answered.</summary>
    public UffdStrategy Strategy { get; }

    /// <summary>What follows where a page of it cannot be read.</summary>
    public UffdOnError OnError => Figures.OnError;

    /// <summary>The bytes of its memory.</summary>
    public ulong MemorySize => (ulong)Figures.PageCount * HostPage.Size;

    /// <summary>How much of its memory has come, from 0 to 100.</summary>
    public double PercentPresent => Figures.PercentPresent;

    /// <summary>Faults answered.</summary>
    public long FaultCount => Figures.FaultCount;

    /// <summary>Whether <see cref="OpenMemory"/> can read its memory: the VMM handed a memfd of it over.</summary>
    public bool CanReadMemory => Figures.SharesMemory;

    /// <summary>What went wrong with it last; null where nothing did.</summary>
    public string? Error => Figures.Error;

    /// <summary>Everything that was counted for it.</summary>
    public UffdFigures Figures { get; }

    /// <summary>What it wrote since its memory was handed over, or gave back; see <see cref="UffdHandler.GetDirtyBitmaps(bool)"/>.</summary>
    /// <param name="clear">Takes its marks, and those of no other VM.</param>
    /// <exception cref="GuestMemoryException">VmNotFound; as there.</exception>
    public IReadOnlyList<DirtyBitmap> GetDirtyBitmaps(bool clear = false) => Handler.GetDirtyBitmapsOf(Id, clear);

    /// <summary>
    /// Its memory, to be read: an address space in which each region lies at its offset in the image, since the handler knows no guest addresses.
    /// What has not come yet is read from the image, and does not come by that. The VM may run meanwhile; a page is then as it is at the
    /// moment at which it is read. The caller disposes of the regions; they outlive the VM, and then have what it had at its end.
    /// </summary>
    /// <exception cref="GuestMemoryException">MemoryNotShared: the VMM handed no memfd over; VmNotFound; StateMismatch: the handler is of another version; ControlFailed.</exception>
    public GuestMemoryMmap OpenMemory() => UffdVmMemory.Open(Handler.OpenFiles(Id), Name);

    /// <summary>
    /// Writes its memory to a raw image, as it is at one instant, while it runs: what <see cref="RawImage.WriteFull"/> of <see cref="OpenMemory"/> writes of a VM that stands still. The
    /// handler write-protects the pages that the VM has. At the instant every page is protected, and a thread of the VM that writes waits until then; no thread is stopped for
    /// that. From then on each page is copied before the VM changes it, by the handler where a write is a fault, or by this call. A page that has not
    /// come is the image's, and does not come by that; one that was given back is zero.
    /// <para>A thread of the VM that gives memory back (<c>madvise(2)</c>) waits until all is copied, and while one waits no page can be brought in: so waits each thread that
    /// touches a missing page. A removal that is under way at the instant counts as before or after it, page by page. What a process writes through another mapping of
    /// the memfd (a vhost-user back end) is no fault, and may be in the image though it is later.</para>
    /// <para>The marks of what the VM wrote stay, and what it writes meanwhile is marked. Pages stay protected until they are written: each one's next write is a fault, as after a
    /// query that takes the marks. The image holds no state of CPUs or devices.</para>
    /// </summary>
    /// <param name="path">The file; made beside its place with the mode 0600 and renamed when it is complete.</param>
    /// <param name="overwrite">Whether a file that is there may be replaced.</param>
    /// <param name="options">What happens besides; null for nothing.</param>
    /// <param name="cancellation">Ends the export; what was written is removed and the VM goes on.</param>
    /// <exception cref="GuestMemoryException">DirtyTrackingOff: the handler does not track what VMs write; LiveUnsupported: the VMM has the kernel do that;
    /// LiveBusy: another such export of the VM is under way; LiveFailed: the VM or the handler's worker ended, or the VM gave a page back in a moment in which that could not be held up; MemoryNotShared; VmNotFound; FileExists; DiskFull; PageNotAccessible. Of stopping the VMM:
    /// ValueNotSupported: it is this process; ProcessDenied, ProcessTraced; WaitTimeout: a thread of it does not stop.</exception>
    public ImageInfo ExportLive(string path, bool overwrite, LiveExportOptions? options = null, CancellationToken cancellation = default)
    {
        options ??= new LiveExportOptions();
        // What its number stands for as long as the handler serves it, which is so when the export begins.
        using var process = options.StopsVmm ? OpenVmm() : null;
        return LiveExport.Write(path, MemorySize, overwrite, options, file => Handler.BeginLive(Id, file), StopVmm, cancellation);

        SafeDescriptor OpenVmm()
        {
            if (Pidfd.TryOpen(ProcessId, out var error) is { } opened) return opened;
            throw error == Errno.ESRCH ? NotFound(Id, SocketPath) : new SyscallException("pidfd_open", error, $"Opening process {ProcessId}, the VMM of VM '{Name}'");
        }

        IDisposable StopVmm()
        {
            var stopped = StoppedProcess.Stop(ProcessId, s_vmmLimit);
            // Nothing is asked of the handler while the VM stands still.
            if (!Pidfd.HasEnded(process!)) return stopped;
            stopped.Dispose();
            throw NotFound(Id, SocketPath);
        }
    }

    /// <summary>Gives it another name.</summary>
    /// <exception cref="GuestMemoryException">VmNotFound; NameInUse: another VM of the handler has it; ValueNotSupported: it is no name of a VM. ControlFailed.</exception>
    public void Rename(string name)
    {
        UffdVmName.Check(name);
        Handler.SetVm(Id, name, null);
    }

    /// <summary>Has something else follow where a page of it cannot be read.</summary>
    /// <exception cref="GuestMemoryException">VmNotFound; ControlFailed.</exception>
    public void SetOnError(UffdOnError onError) => Handler.SetVm(Id, null, onError);

    /// <summary>
    /// Ends its service, and returns when it has ended. The VMM is killed; or every page that has not come is poisoned, and pages that were given
    /// back are the kernel's zeros from then on, so that no thread of the VM waits. Where the VMM may not be killed, its pages are poisoned.
    /// </summary>
    /// <param name="action">Kill or Poison; null for <see cref="OnError"/>.</param>
    /// <param name="cancellation">Ends the wait; the service ends all the same.</param>
    /// <exception cref="GuestMemoryException">VmNotFound; ValueNotSupported: Stop, which is about the handler; ControlFailed: it did not end within 30 s.</exception>
    /// <exception cref="OperationCanceledException">Cancelled before it had ended.</exception>
    public void Stop(UffdOnError? action = null, CancellationToken cancellation = default)
    {
        var order = action ?? OnError;
        if (order == UffdOnError.Stop)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"Where a page of VM '{Name}' cannot be read its handler stops (OnError); to stop the VM alone say whether it is killed or poisoned.");
        Handler.StopVm(Id, order);
        for (var started = Stopwatch.GetTimestamp(); Handler.HasVm(Id);)
        {
            if (Stopwatch.GetElapsedTime(started) > s_stopTimeout)
                throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"VM '{Name}' is still served {s_stopTimeout.TotalSeconds:0} s after it was stopped.");
            if (cancellation.WaitHandle.WaitOne(s_pause)) cancellation.ThrowIfCancellationRequested();
        }
    }

    /// <summary>The name.</summary>
    public override string ToString() => Name;

    internal static GuestMemoryException NotShared(string name, string socketPath) => new(GuestMemoryError.MemoryNotShared,
        $"The memory of VM '{name}' cannot be read: its VMM handed the handler at {socketPath} its userfaultfd alone, and no memfd of ordinary pages that is the VM's memory. That is up to the VMM; the VM itself can read its memory.");

    internal static GuestMemoryException NotFound(int id, string socketPath) =>
        new(GuestMemoryError.VmNotFound, $"The handler at {socketPath} serves no VM {id} (any more).");
}
