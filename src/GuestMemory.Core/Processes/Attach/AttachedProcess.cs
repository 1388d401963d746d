using System.Globalization;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Processes;

/// <summary>
/// A running VMM whose guest memory is accessed from outside: QEMU, Firecracker, cloud-hypervisor, crosvm, or any other process where the caller says where the memory lies.
/// The process is not changed. It is held by a pidfd: once it has ended every access fails (ProcessEnded), also where another process has its number by then. Disposal, like the release
/// of the last region, ends the access.
/// </summary>
public sealed class AttachedProcess : IMemoryProcess, IDisposable
{
    private readonly SafeDescriptor _pidfd;
    private int _regions;
    private ProcessEndWatch? _watch;

    private AttachedProcess(int processId, SafeDescriptor pidfd, VmmProgram program, AttachOptions options)
    {
        ProcessId = processId;
        _pidfd = pidfd;
        Program = program.Name;
        IsWritable = options.IsWritable;
        Pauses = options.Pauses;
    }

    /// <summary>The process.</summary>
    public int ProcessId { get; }

    /// <summary>The name of its program.</summary>
    public string Program { get; }

    /// <summary>Whether its memory may be written.</summary>
    public bool IsWritable { get; }

    /// <summary>Whether it is stopped while <see cref="GuestMemoryMmap.Hold"/> lasts.</summary>
    public bool Pauses { get; }

    /// <summary>Its guest memory.</summary>
    public GuestMemoryMmap Memory { get; private set; } = GuestMemoryMmap.Empty;

    /// <summary>Where the guest addresses come from, as a sentence.</summary>
    public string LayoutSource { get; private set; } = "";

    /// <summary>What the caller should know: that the process is stopped by SIGSTOP, that memory may be missing.</summary>
    public IReadOnlyList<string> Warnings { get; private set; } = [];

    /// <summary>Whether the process has ended.</summary>
    public bool HasEnded
    {
        get
        {
            try
            {
                return Pidfd.HasEnded(_pidfd);
            }
            catch (ObjectDisposedException)
            {
                return true;
            }
        }
    }

    /// <summary>Whether a process runs a VMM whose guest memory can be found, as far as this user may know.</summary>
    public static bool IsVmm(int processId)
    {
        try
        {
            return VmmProgram.Of(processId).Kind != VmmKind.Other;
        }
        catch (GuestMemoryException)
        {
            return false;
        }
    }

    /// <summary>Finds the guest memory of a process, and where in the guest it lies.</summary>
    /// <param name="processId">The process.</param>
    /// <param name="options">How.</param>
    /// <exception cref="GuestMemoryException">
    /// ProcessNotFound; ProcessDenied: a right is missing, which the message names; NoGuestMemory: it is no VMM, and no layout was given; LayoutUnknown; MonitorFailed: the monitor that was
    /// given; ProcessTraced, WaitTimeout, ValueNotSupported (it is this process): it cannot be paused; MemoryRegionOverlap, ZeroSize, RangeNotMapped: of the layout that was given.
    /// </exception>
    /// <exception cref="OperationCanceledException">The caller ended it by the token of the options.</exception>
    public static AttachedProcess Attach(int processId, AttachOptions? options = null)
    {
        options ??= new AttachOptions();
        var pidfd = Pidfd.TryOpen(processId, out var error)
            ?? throw (error is Errno.ESRCH or Errno.EINVAL or Errno.ENOENT ? ProcessFile.NotFound(processId) : new SyscallException("pidfd_open", error, $"Opening process {processId}"));
        AttachedProcess? attached = null;
        try
        {
            var program = VmmProgram.Of(processId);
            if (program.Kind == VmmKind.Other && options.Layout.Count == 0)
            {
                throw new GuestMemoryException(GuestMemoryError.NoGuestMemory,
                    $"Process {processId} ({program.Name}) is none of the VMMs whose guest memory can be found: QEMU, Firecracker, cloud-hypervisor, crosvm.");
            }

            RequireAccess(processId);
            attached = new AttachedProcess(processId, pidfd, program, options);
            attached.Open(program, options);
            return attached;
        }
        catch
        {
            attached?.Dispose();
            pidfd.Dispose();
            throw;
        }
    }

    /// <summary>Ends the access to all of the memory.</summary>
    public void Dispose()
    {
        foreach (var region in Memory.Regions) region.Dispose();
    }

    /// <summary>The process and its memory, for debuggers and messages.</summary>
    public override string ToString() => $"process {ProcessId} ({Program}), {Memory}";

    /// <inheritdoc/>
    IDisposable? IMemoryProcess.Hold()
    {
        if (!Pauses) return null;
        ThrowIfEnded();
        var pause = ProcessPause.Begin(ProcessId);
        try
        {
            // The number is that of the same process still.
            ThrowIfEnded();
        }
        catch
        {
            pause.Dispose();
            throw;
        }

        return pause;
    }

    /// <exception cref="GuestMemoryException">ProcessEnded.</exception>
    internal void ThrowIfEnded()
    {
        if (HasEnded) throw _pidfd.IsClosed ? VolatileMemory.RegionDisposed() : new GuestMemoryException(GuestMemoryError.ProcessEnded, $"Process {ProcessId} ({Program}), whose memory was attached, has ended.");
    }

    /// <summary>A region was released; after the last one the process is no longer held.</summary>
    internal void Leave()
    {
        if (Interlocked.Decrement(ref _regions) != 0) return;
        _watch?.Dispose();
        _pidfd.Dispose();
    }

    /// <summary>The kernel checks the right before the address: nobody has memory at address 0, and no page is waited for.</summary>
    private static void RequireAccess(int processId)
    {
        Span<byte> nothing = stackalloc byte[1];
        switch (ProcessVm.TryRead(processId, nothing, 0))
        {
            case -Errno.EPERM or -Errno.EACCES: throw ProcessFile.Denied(processId, "process_vm_readv(2) of its memory is refused.");
            case -Errno.ESRCH: throw ProcessFile.NotFound(processId);
            case -Errno.ENOSYS: throw new SyscallException("process_vm_readv", Errno.ENOSYS, $"Reading the memory of process {processId}", remedy: "A sandbox denies the call, or the kernel lacks CONFIG_CROSS_MEMORY_ATTACH.");
        }
    }

    private void Open(VmmProgram program, AttachOptions options)
    {
        var found = VmmMemory.Find(program, options);
        (LayoutSource, var warnings) = (found.Source, found.Warnings);
        var mappings = ProcessMapping.GetAll(ProcessId);
        var regions = new List<GuestMemoryRegion>();
        try
        {
            foreach (var range in found.Ranges.OrderBy(static range => range.GuestAddress))
            {
                options.Cancellation.ThrowIfCancellationRequested();
                GuestMemoryRegion.CheckFits(new GuestAddress(range.GuestAddress), range.Size);
                var name = options.Name?.Invoke(program.ShortName, ProcessId, regions.Count) ?? $"{program.ShortName}{ProcessId}-{regions.Count}";
                var memory = OpenRange(range, mappings, options.Cancellation);
                _regions++;
                regions.Add(new GuestRegionProcess(memory, new GuestAddress(range.GuestAddress), name));
            }

            Memory = GuestMemoryMmap.FromRegions(regions);
            SafeFileHandle[] files = [.. regions.Select(static region => region.GetFileOffset()?.File).OfType<SafeFileHandle>()];
            if (files.Length > 0) _watch = new ProcessEndWatch(_pidfd, files);
            // What is in the way of that is better known now.
            if (Pauses)
            {
                using var pause = (ProcessPause)((IMemoryProcess)this).Hold()!;
                if (pause.Note is { } note) warnings = [.. warnings, note];
            }
        }
        catch
        {
            foreach (var region in regions) region.Dispose();
            throw;
        }

        ThrowIfEnded();
        Warnings = warnings;
    }

    private ProcessMemory OpenRange(GuestLayoutRange range, IReadOnlyList<ProcessMapping> mappings, CancellationToken cancellation)
    {
        var (start, end) = (range.ProcessAddress!.Value, range.ProcessAddress.Value + range.Size);
        var parts = mappings.Where(mapping => mapping.Address < end && mapping.End > start && mapping.Protection[0] == 'r').ToArray();
        var gap = ProcessMapping.FindGap(parts, start);
        if (range.Size == 0 || end < start || gap < end) throw new GuestMemoryException(GuestMemoryError.RangeNotMapped, $"Process {ProcessId} has no memory at address 0x{Math.Max(gap, start):x}, where that of guest address 0x{range.GuestAddress:x} should be.");
        var first = parts[0];
        var path = first.Path.Length > 0 && first.Inode != 0 ? first.Path : null;
        var isOneFile = parts.All(part => part.IsShared && part.Inode != 0 && part.Inode == first.Inode && part.Device == first.Device && part.Offset - first.Offset == part.Address - first.Address);
        if (!isOneFile || ProcessMapping.IsProvided(ProcessId, start, end)) return new ProcessMemory(this, start, range.Size, null, path);
        using var file = TryOpenFile(first, cancellation);
        return new ProcessMemory(this, start, range.Size, file is null ? null : FileOffset.Duplicate(file, first.Offset + (start - first.Address)), path);
    }

    /// <summary>The file behind a mapping: a duplicate of a descriptor of the process, else by the mapping itself (which needs CAP_CHECKPOINT_RESTORE); null where neither can be had.</summary>
    private SafeFileHandle? TryOpenFile(ProcessMapping mapping, CancellationToken cancellation)
    {
        foreach (var entry in ProcessFile.Open(ProcessId, "fd", Directory.GetFiles))
        {
            cancellation.ThrowIfCancellationRequested();
            if (FileStatus.TryGet(entry, out var status, follow: true) != 0 || !IsSame(status, mapping)) continue;
            var number = int.Parse(Path.GetFileName(entry.AsSpan()), NumberStyles.None, CultureInfo.InvariantCulture);
            using var taken = Pidfd.TryGetDescriptor(_pidfd, number, out _);
            // By now it may be another file.
            if (taken is not null && IsSame(FileStatus.Get(taken), mapping) && IsReadable(taken)) return Descriptor.Duplicate(taken);
        }

        try
        {
            var file = File.OpenHandle($"/proc/{ProcessId}/map_files/{mapping.Address:x}-{mapping.End:x}", FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
            if (IsSame(FileStatus.Get(file), mapping)) return file;
            file.Dispose();
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // The process reads it for us.
        }

        return null;
    }

    private static bool IsReadable(SafeDescriptor file)
    {
        Span<byte> one = stackalloc byte[1];
        return PositionedIo.TryRead(file, one, 0) >= 0;
    }

    private static bool IsSame(Statx status, ProcessMapping mapping) => status.stx_ino == mapping.Inode && mapping.Device == $"{status.stx_dev_major:x2}:{status.stx_dev_minor:x2}";
}
