using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.VhostUser;

/// <summary>Operations on a disk's file by an io_uring: one system call begins all that are new and waits for the end of any.</summary>
internal sealed unsafe class UringDiskIo : IDiskIo
{
    // An operation has its place as its tag.
    private const ulong KickTag = ulong.MaxValue;
    private const ulong StopTag = ulong.MaxValue - 1;

    private readonly IoUring _ring;
    private readonly SafeFileHandle _file;
    private readonly SafeDescriptor _kick;
    private readonly int _number;

    private UringDiskIo(IoUring ring, SafeFileHandle file, SafeDescriptor kick, SafeDescriptor stop)
    {
        (_ring, _file, _kick) = (ring, file, kick);
        var held = false;
        file.DangerousAddRef(ref held);
        _number = (int)file.DangerousGetHandle();
        Watch(kick, KickTag);
        Watch(stop, StopTag);
    }

    /// <summary>Makes one; null where there is no io_uring: an old kernel, a sandbox, or the limit of locked memory.</summary>
    /// <param name="file">The file; it is kept open.</param>
    /// <param name="kick">The eventfd of the guest, which stays open.</param>
    /// <param name="stop">The eventfd that stops the virtqueue, which stays open.</param>
    /// <param name="count">The most operations at a time.</param>
    /// <exception cref="SyscallException">io_uring_setup(2) failed otherwise.</exception>
    public static UringDiskIo? TryOpen(SafeFileHandle file, SafeDescriptor kick, SafeDescriptor stop, int count)
    {
        // Both eventfds have an entry, too.
        var entries = System.Numerics.BitOperations.RoundUpToPowerOf2((uint)count + 2);
        var ring = IoUring.TryCreate(entries, entries * 2, out var error);
        if (ring is null)
            return error is Errno.ENOSYS or Errno.EPERM or Errno.EACCES or Errno.EINVAL or Errno.ENOMEM ? null : throw new SyscallException("io_uring_setup", error, "Preparing disk requests");
        try
        {
            return new UringDiskIo(ring, file, kick, stop);
        }
        catch
        {
            ring.Dispose();
            throw;
        }
    }

    public void Begin(int place, in DiskOperation operation)
    {
        var entry = Entry();
        entry->user_data = (ulong)place;
        entry->fd = _number;
        entry->off = operation.Offset;
        switch (operation.Action)
        {
            case DiskAction.Read or DiskAction.Write:
                entry->opcode = operation.Action == DiskAction.Read ? IoUring.IORING_OP_READV : IoUring.IORING_OP_WRITEV;
                entry->addr = (ulong)operation.Pieces;
                entry->len = (uint)operation.Count;
                entry->rw_flags = (uint)operation.Flags;
                break;
            case DiskAction.Sync:
                entry->opcode = IoUring.IORING_OP_FSYNC;
                entry->rw_flags = IoUring.IORING_FSYNC_DATASYNC;
                break;
            default:
                entry->opcode = IoUring.IORING_OP_FALLOCATE;
                // The length stands in the address, and the mode in the length.
                entry->addr = operation.Length;
                entry->len = (uint)operation.Flags;
                break;
        }
    }

    public void Wait() => _ring.Enter(wait: true);

    public bool TryTake(out DiskEvent found)
    {
        found = default;
        if (!_ring.TryTake(out var answer)) return false;
        if (answer.user_data is not (KickTag or StopTag))
        {
            found = new DiskEvent(DiskEventKind.Ended, (int)answer.user_data, answer.res);
            return true;
        }

        if (answer.res < 0) throw new SyscallException("poll", -answer.res, "Waiting for a kick");
        found = new DiskEvent(answer.user_data == KickTag ? DiskEventKind.Kicked : DiskEventKind.Stopped);
        if (found.Kind == DiskEventKind.Stopped) return true;
        EventFd.ClearShared(_kick);
        Watch(_kick, KickTag);
        return true;
    }

    public void Dispose()
    {
        _ring.Dispose();
        _file.DangerousRelease();
    }

    private IoUringSqe* Entry()
    {
        IoUringSqe* entry;
        while ((entry = _ring.TryGetEntry()) is null) _ring.Enter(wait: false);
        return entry;
    }

    private void Watch(SafeDescriptor descriptor, ulong tag)
    {
        var entry = Entry();
        entry->opcode = IoUring.IORING_OP_POLL_ADD;
        entry->fd = descriptor.Number;
        entry->rw_flags = (uint)Poll.POLLIN;
        entry->user_data = tag;
    }
}
