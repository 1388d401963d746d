using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Processes;

/// <summary>
/// Memory of another process. What the process shares as a file (a memfd, hugetlbfs) is read by a duplicate of its descriptor, everything else by
/// <c>process_vm_readv(2)</c>; <c>process_vm_writev(2)</c> writes. The file is not mapped here: to touch a page that the guest never touched would allocate it, and
/// under a userfaultfd of the VMM would give the guest zeros in the place of its memory. A read at an offset of the file does neither.
/// </summary>
internal sealed unsafe class ProcessMemory : VolatileMemory
{
    public ProcessMemory(AttachedProcess process, ulong address, ulong size, FileOffset? file, string? backingPath)
        : base(size, process.IsWritable ? MemoryProtection.ReadWrite : MemoryProtection.Read)
    {
        Process = process;
        Address = address;
        File = file;
        BackingPath = backingPath;
    }

    public AttachedProcess Process { get; }

    public ulong Address { get; }

    public string? BackingPath { get; }

    public override FileOffset? File { get; }

    /// <summary>An access in the process may wait for a page-fault handler of it; one by the file does not.</summary>
    public override bool MayWait => File is null || Protection.HasWrite();

    public override void Release(bool force)
    {
        lock (Process)
        {
            if (IsDisposed) return;
            SetDisposed();
        }

        File?.File.Dispose();
        Process.Leave();
    }

    protected override int ReadCore(ulong offset, Span<byte> buffer, out int error)
    {
        var done = 0;
        error = 0;
        try
        {
            while (done < buffer.Length)
            {
                var rest = buffer[done..];
                var count = File is { } file
                    ? PositionedIo.TryRead(file.File, rest, file.Start + offset + (ulong)done)
                    : ProcessVm.TryRead(Process.ProcessId, rest, Address + offset + (ulong)done);
                if (count == -Errno.EINTR) continue;
                // The file was truncated.
                if (count == 0) count = -Errno.EFAULT;
                if (count < 0)
                {
                    error = (int)-count;
                    break;
                }

                done += (int)count;
            }
        }
        catch (ObjectDisposedException exception)
        {
            // Closed by the end of the process, or by the release.
            if (!IsDisposed) Process.ThrowIfEnded();
            throw RegionDisposed(exception);
        }

        // A process that lives after the read is the one that was read: its number was not free meanwhile.
        Process.ThrowIfEnded();
        return done;
    }

    protected override int WriteCore(ulong offset, ReadOnlySpan<byte> buffer, out int error)
    {
        error = Protection.HasWrite() ? 0 : Errno.EACCES;
        if (error != 0) return 0;
        Process.ThrowIfEnded();
        var done = 0;
        fixed (byte* local = buffer)
        {
            while (done < buffer.Length)
            {
                var count = ProcessVm.TryWrite(Process.ProcessId, local + done, (nint)(Address + offset) + done, (nuint)(buffer.Length - done));
                if (count == -Errno.EINTR) continue;
                if (count < 0)
                {
                    error = (int)-count;
                    break;
                }

                done += (int)count;
            }
        }

        Process.ThrowIfEnded();
        return done;
    }

    protected override string WhyNot(MemoryProtection access, int error) => error == Errno.EFAULT
        ? File is null ? $"process {Process.ProcessId} has no such memory there any more, or its page-fault handler provides the page to the process alone" : $"the file behind it, {BackingPath}, may have been truncated"
        : base.WhyNot(access, error);

    protected internal override SyscallException Cause(ulong offset, MemoryProtection access, int error) => new(
        access != MemoryProtection.Read ? "process_vm_writev" : File is null ? "process_vm_readv" : "preadv", error, $"Access to address 0x{Address + offset:x} of process {Process.ProcessId}",
        error == Errno.EPERM ? GuestMemoryError.ProcessDenied : GuestMemoryError.SyscallFailed, error == Errno.EPERM ? "It needs root (CAP_SYS_PTRACE), and a caller without a sandbox that denies the call." : null);
}
