using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Processes;

/// <summary>
/// Owns the tracking of writes to a range of another process's memory, until it is disposed. The process need not cooperate. By <see cref="ProcessTrackingSource.Userfault"/>
/// the kernel notes each write; the other sources look at the memory at each query, and say less (see <see cref="ProcessTrackingSource"/>). Where this process ends, the tracking
/// ends, and the other goes on.
/// </summary>
/// <remarks>
/// A page counts as dirty where the process wrote it, or the kernel did on its behalf, or where it was given back (MADV_DONTNEED, a punched hole). Any number of threads may use one object.
/// </remarks>
public abstract class ProcessDirtyTracker : IDisposable
{
    // Mincore is not among them: it never says what was written again.
    private static readonly ProcessTrackingSource[] s_order = [ProcessTrackingSource.Userfault, ProcessTrackingSource.SoftDirty, ProcessTrackingSource.Compare];

    private readonly Lock _lock = new();
    private readonly SafeDescriptor _process;
    private volatile bool _isStopped;
    private bool _isDisposed;

    private protected ProcessDirtyTracker(TrackedRange range)
    {
        (ProcessId, _process, Address, Size, PageSize) = range;
        ProcessName = ProcessFile.Read(ProcessId, "comm", static lines => lines.FirstOrDefault() ?? "");
        Found = new AtomicBitmap(Size, PageSize);
    }

    /// <summary>The process whose memory is tracked.</summary>
    public int ProcessId { get; }

    /// <summary>The process's name, at most 15 characters.</summary>
    public string ProcessName { get; }

    /// <summary>What tells the writes; never <see cref="ProcessTrackingSource.Auto"/>.</summary>
    public abstract ProcessTrackingSource Source { get; }

    /// <summary>Whether each write is told, and nothing else; false where the memory is only looked at from time to time.</summary>
    public abstract bool IsExact { get; }

    /// <summary>Where <see cref="ProcessTrackingSource.Auto"/> was asked for: why each source before this one was refused. Null where none was.</summary>
    public string? Reason { get; private set; }

    /// <summary>The first address of the range, in the process.</summary>
    public ulong Address { get; }

    /// <summary>The length of the range in bytes.</summary>
    public ulong Size { get; }

    /// <summary>The bytes that a page of the bitmap stands for: the page size of the mapping, that of huge pages in hugetlb memory. Transparent huge pages count as small ones.</summary>
    public ulong PageSize { get; }

    /// <summary>How long a thread of the process stood still when the tracking began, at most. Zero by a source that stops none.</summary>
    public TimeSpan Standstill { get; private protected init; }

    /// <summary>Whether writes are noted. Does not wait for a query that runs.</summary>
    public ProcessTrackingState State
    {
        get
        {
            try
            {
                return _isStopped ? ProcessTrackingState.Stopped : Pidfd.HasEnded(_process) ? ProcessTrackingState.Ended : ProcessTrackingState.Tracking;
            }
            catch (ObjectDisposedException)
            {
                return ProcessTrackingState.Stopped;
            }
        }
    }

    /// <summary>What was found and not yet told.</summary>
    private protected AtomicBitmap Found { get; }

    /// <summary>What is tracked, for messages: "process 4711 (qemu-system-x86), 0x7f0000000000 to 0x7f003fffffff".</summary>
    public override string ToString() => $"process {ProcessId} ({ProcessName}), 0x{Address:x} to 0x{Address + (Size - 1):x}";

    /// <summary>Begins to track a range; every page of it is clean then. Where it fails, nothing of the process has changed.</summary>
    /// <param name="processId">The process.</param>
    /// <param name="address">The first address, a multiple of the mapping's page size.</param>
    /// <param name="size">The length in bytes, a multiple of the same. All of it must be mapped, in one page size.</param>
    /// <param name="source">What tells the writes.</param>
    /// <param name="progress">Called with the bytes that were looked at, from time to time, on this thread; sources that look at all memory take a while.</param>
    /// <param name="cancellation">Cancels the looking.</param>
    /// <exception cref="GuestMemoryException">
    /// ProcessNotFound; ProcessDenied: this user may not trace it; RangeNotMapped; ZeroSize, NotPageAligned, UnalignedSize; ValueNotSupported: mappings of several page sizes;
    /// UffdRegisterFailed: memory of a device. By Userfault also ProcessDenied: its seccomp filter may not be suspended; ProcessTraced: a debugger traces it; ProcessUnsupported: a 32-bit program,
    /// a thread of the kernel, or one that answers its system calls itself; WaitTimeout: none of its threads can be stopped; RangeInUse: another userfaultfd
    /// watches a part of it; UffdRegisterFailed: memory that the process may never write; UffdUnsupported: a kernel before 6.7; ValueNotSupported: this process itself.
    /// By SoftDirty SoftDirtyUnsupported: the kernel notes nothing, or the memory has huge pages.
    /// </exception>
    public static ProcessDirtyTracker Start(int processId, ulong address, ulong size, ProcessTrackingSource source = ProcessTrackingSource.Userfault, Action<ulong>? progress = null,
        CancellationToken cancellation = default)
    {
        if (source is < ProcessTrackingSource.Userfault or > ProcessTrackingSource.Auto) throw new ArgumentOutOfRangeException(nameof(source));
        if (source == ProcessTrackingSource.Userfault) UserfaultDirtyTracker.RequireAnother(processId);
        if (size == 0) throw new GuestMemoryException(GuestMemoryError.ZeroSize, "A range of no bytes cannot be tracked.");
        var process = Pidfd.TryOpen(processId, out var error);
        if (process is null)
            throw error is Errno.ESRCH or Errno.EINVAL ? ProcessFile.NotFound(processId) : new SyscallException("pidfd_open", error, $"Opening process {processId}");
        try
        {
            if (Pidfd.HasEnded(process)) throw ProcessFile.NotFound(processId);
            var range = new TrackedRange(processId, process, address, size, CheckRange(processId, address, size));
            return source == ProcessTrackingSource.Auto ? StartFirst(range, progress, cancellation) : StartBy(range, source, progress, cancellation);
        }
        catch (Exception exception)
        {
            var hasEnded = Pidfd.HasEnded(process);
            process.Dispose();
            if (exception is not GuestMemoryException failure) throw;
            // Whatever failed, it did because of that.
            if (hasEnded) throw ProcessFile.NotFound(processId, exception);
            if (source == ProcessTrackingSource.Userfault && IsRefusal(failure.Error))
                throw new GuestMemoryException(failure.Error, $"{failure.Message} Other sources ({ProcessTrackingSource.Compare}, {ProcessTrackingSource.SoftDirty}, {ProcessTrackingSource.Mincore}) need less, and are less exact.", failure) { Address = failure.Address };
            throw;
        }
    }

    /// <summary>Whether an error of a start is of the source by which it was asked for, so that another one may do; it is not of the range or of the process.</summary>
    /// <param name="error">The error.</param>
    public static bool IsRefusal(GuestMemoryError error) => error is GuestMemoryError.ProcessDenied or GuestMemoryError.ProcessTraced or GuestMemoryError.ProcessUnsupported or GuestMemoryError.WaitTimeout
        or GuestMemoryError.RangeInUse or GuestMemoryError.UffdRegisterFailed or GuestMemoryError.UffdUnsupported or GuestMemoryError.SoftDirtyUnsupported;

    /// <summary>The bytes from an address to the end of the mapping that contains it.</summary>
    /// <param name="processId">The process.</param>
    /// <param name="address">The address.</param>
    /// <exception cref="GuestMemoryException">ProcessNotFound, ProcessDenied, RangeNotMapped.</exception>
    public static ulong SizeToEnd(int processId, ulong address)
    {
        var mapping = ProcessMapping.GetAll(processId).FirstOrDefault(mapping => mapping.Address <= address && address < mapping.End);
        return mapping is null ? throw Missing(processId, address) : mapping.End - address;
    }

    /// <summary>
    /// The pages that were written or given back since the tracking began, or since they were last cleared, as far as the source tells.
    /// </summary>
    /// <param name="clear">Whether they are clean from then on. By Userfault each page is read and cleared in one step: no write is lost.</param>
    /// <param name="progress">Called with the bytes that were looked at, from time to time, on this thread.</param>
    /// <param name="cancellation">Cancels the query; what it found is told by the next one.</param>
    /// <exception cref="GuestMemoryException">
    /// DirtyTrackingOff: the tracking was stopped; ProcessEnded: the process ended, or runs another program; RangeNotMapped: the process unmapped the begin of the range,
    /// or (Userfault) mapped other memory in it, or (other sources) unmapped any part. By Userfault, pages that it unmapped elsewhere are not dirty.
    /// </exception>
    public DirtyBitmap GetDirtyBitmap(bool clear = false, Action<ulong>? progress = null, CancellationToken cancellation = default)
    {
        lock (_lock)
        {
            // What was found stays until it is told, also where a call fails half way.
            Find(clear, progress, cancellation);
            return new DirtyBitmap(Address, Size, PageSize, clear ? Found.GetAndReset() : Found.Snapshot(), IsExact ? $"process {ProcessId}" : $"process {ProcessId}, {Source}");
        }
    }

    /// <summary>Ends the tracking; the process goes on and its writes cost nothing any more. A query that runs ends soon.</summary>
    public void Dispose()
    {
        _isStopped = true;
        lock (_lock)
        {
            if (_isDisposed) return;
            _isDisposed = true;
            Release();
            _process.Dispose();
        }

        GC.SuppressFinalize(this);
    }

    /// <summary>Marks what has changed, in <see cref="Found"/>; one call at a time.</summary>
    private protected abstract void Find(bool clear, Action<ulong>? progress, CancellationToken cancellation);

    /// <summary>Frees what the source holds.</summary>
    private protected abstract void Release();

    /// <summary>Ends a query that is not wanted any more.</summary>
    private protected void ThrowIfUnwanted(CancellationToken cancellation)
    {
        cancellation.ThrowIfCancellationRequested();
        if (_isStopped) throw new GuestMemoryException(GuestMemoryError.DirtyTrackingOff, $"The tracking of {this} was stopped.");
    }

    private protected GuestMemoryException Ended(Exception? inner = null) => new(GuestMemoryError.ProcessEnded, $"Process {ProcessId} ({ProcessName}) has ended, or runs another program.", inner);

    private protected GuestMemoryException Unmapped() => new(GuestMemoryError.RangeNotMapped, $"Process {ProcessId} unmapped the 0x{Size:x} bytes at 0x{Address:x}, or mapped other memory there; what it wrote there is not known.") { Address = Address };

    private static ProcessDirtyTracker StartBy(TrackedRange range, ProcessTrackingSource source, Action<ulong>? progress, CancellationToken cancellation) => source switch
    {
        ProcessTrackingSource.Compare => CompareDirtyTracker.Begin(range, progress, cancellation),
        ProcessTrackingSource.SoftDirty => SoftDirtyTracker.Begin(range, cancellation),
        ProcessTrackingSource.Mincore => MincoreDirtyTracker.Begin(range, progress, cancellation),
        _ => UserfaultDirtyTracker.Begin(range),
    };

    private static ProcessDirtyTracker StartFirst(TrackedRange range, Action<ulong>? progress, CancellationToken cancellation)
    {
        List<(ProcessTrackingSource Source, GuestMemoryException Failure)> refusals = [];
        foreach (var source in s_order)
        {
            try
            {
                var tracker = StartBy(range, source, progress, cancellation);
                if (refusals.Count > 0) tracker.Reason = string.Join(" ", refusals.Select(static refusal => $"{refusal.Source}: {refusal.Failure.Message}"));
                return tracker;
            }
            catch (GuestMemoryException exception) when (exception.Error is not (GuestMemoryError.ProcessNotFound or GuestMemoryError.ProcessEnded or GuestMemoryError.RangeNotMapped))
            {
                refusals.Add((source, exception));
            }
        }

        throw new GuestMemoryException(refusals[0].Failure.Error, refusals[0].Failure.Message, refusals[0].Failure) { Address = refusals[0].Failure.Address };
    }

    /// <summary>The page size of the range.</summary>
    private static ulong CheckRange(int processId, ulong address, ulong size)
    {
        if (!HostPage.IsAligned(address, HostPage.Size))
            throw new GuestMemoryException(GuestMemoryError.NotPageAligned, $"The address 0x{address:x} is not a multiple of the page size, 0x{HostPage.Size:x}.") { Address = address };
        var end = unchecked(address + size);
        var mappings = ProcessMapping.GetAll(processId).Where(mapping => mapping.End > address && (end <= address || mapping.Address < end)).ToArray();
        var next = ProcessMapping.FindGap(mappings, address);
        var hasFiles = mappings.Any(static mapping => mapping.Inode != 0);

        if (end <= address || next < end)
        {
            throw next == address ? Missing(processId, address)
                : new GuestMemoryException(GuestMemoryError.RangeNotMapped, $"Process {processId} has no memory at 0x{next:x}, inside the 0x{size:x} bytes at 0x{address:x}.") { Address = next };
        }

        // Huge pages of hugetlb always have a file, be it a hidden one.
        var hasDevice = false;
        var sizes = hasFiles ? ProcessMapping.PageSizesOf(processId, address, end, out hasDevice) : new HashSet<ulong> { HostPage.Size };
        // The kernel would take it, and note nothing.
        if (hasDevice) throw new GuestMemoryException(GuestMemoryError.UffdRegisterFailed, $"A part of the 0x{size:x} bytes at 0x{address:x} of process {processId} is memory of a device; its writes are not noted.") { Address = address };
        if (sizes.Count != 1)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"The 0x{size:x} bytes at 0x{address:x} of process {processId} are mappings of several page sizes; each is tracked by itself.") { Address = address };
        var pageSize = sizes.First();
        if (!HostPage.IsAligned(address, pageSize))
            throw new GuestMemoryException(GuestMemoryError.NotPageAligned, $"The address 0x{address:x} is not a multiple of the mapping's page size, 0x{pageSize:x}.") { Address = address };
        if (!HostPage.IsAligned(size, pageSize))
            throw new GuestMemoryException(GuestMemoryError.UnalignedSize, $"The size 0x{size:x} is not a multiple of the mapping's page size, 0x{pageSize:x}.");
        return pageSize;
    }

    private static GuestMemoryException Missing(int processId, ulong address) =>
        new(GuestMemoryError.RangeNotMapped, $"Process {processId} has no memory at 0x{address:x}.") { Address = address };
}
