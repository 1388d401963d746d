using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>
/// <c>io_uring(7)</c>: a thread puts requests into a ring that the kernel shares with it, and takes the answers from another one. A request
/// whose file does not answer at once holds up no other. For one thread at a time.
/// </summary>
internal sealed unsafe partial class IoUring : IDisposable
{
    public const byte IORING_OP_READV = 1;
    public const byte IORING_OP_WRITEV = 2;
    public const byte IORING_OP_FSYNC = 3;
    public const byte IORING_OP_POLL_ADD = 6;
    public const byte IORING_OP_FALLOCATE = 17;

    public const uint IORING_FSYNC_DATASYNC = 1;
    public const uint IORING_SETUP_CQSIZE = 1 << 3;
    public const uint IORING_FEAT_SINGLE_MMAP = 1;
    public const uint IORING_FEAT_NODROP = 2;
    public const uint IORING_ENTER_GETEVENTS = 1;
    public const long IORING_OFF_SQ_RING = 0;
    public const long IORING_OFF_SQES = 0x10000000;

    private readonly SafeDescriptor _ring;
    private readonly SafeMapping _rings;
    private readonly SafeMapping _entries;
    private readonly uint* _submissionHead;
    private readonly uint* _submissionTail;
    private readonly uint _submissionMask;
    private readonly uint* _completionHead;
    private readonly uint* _completionTail;
    private readonly uint _completionMask;
    private readonly IoUringCqe* _completions;
    private uint _tail;
    private uint _submitted;

    private IoUring(SafeDescriptor ring, IoUringParams setup)
    {
        _ring = ring;
        using var lease = new DescriptorLease(ring);
        const int protection = Mman.PROT_READ | Mman.PROT_WRITE;
        const int flags = Mman.MAP_SHARED | Mman.MAP_POPULATE;
        var length = Math.Max(setup.sq_off.array + (setup.sq_entries * sizeof(uint)), setup.cq_off.cqes + (setup.cq_entries * (uint)sizeof(IoUringCqe)));
        _rings = Mman.Map(length, protection, flags, lease.Number, IORING_OFF_SQ_RING, "Mapping the rings of an io_uring");
        try
        {
            _entries = Mman.Map(setup.sq_entries * (uint)sizeof(IoUringSqe), protection, flags, lease.Number, IORING_OFF_SQES, "Mapping the entries of an io_uring");
        }
        catch
        {
            _rings.Dispose();
            throw;
        }

        var start = (byte*)_rings.Address;
        _submissionHead = (uint*)(start + setup.sq_off.head);
        _submissionTail = (uint*)(start + setup.sq_off.tail);
        _submissionMask = *(uint*)(start + setup.sq_off.ring_mask);
        _completionHead = (uint*)(start + setup.cq_off.head);
        _completionTail = (uint*)(start + setup.cq_off.tail);
        _completionMask = *(uint*)(start + setup.cq_off.ring_mask);
        _completions = (IoUringCqe*)(start + setup.cq_off.cqes);
        // Entry N stands for itself, always.
        var array = (uint*)(start + setup.sq_off.array);
        for (uint i = 0; i < setup.sq_entries; i++) array[i] = i;
    }

    /// <summary>Makes one; null with the error number where it cannot be had: the kernel or a sandbox has none (ENOSYS, EPERM), for example.</summary>
    /// <param name="entries">The requests that may wait to be submitted: a power of two.</param>
    /// <param name="completions">The answers that may wait to be taken: a power of two, at least as many.</param>
    /// <param name="error">The error number.</param>
    public static IoUring? TryCreate(uint entries, uint completions, out int error)
    {
        var setup = new IoUringParams { flags = IORING_SETUP_CQSIZE, cq_entries = completions };
        var number = syscall(SystemCalls.Number("io_uring_setup"), entries, &setup);
        error = number < 0 ? Marshal.GetLastPInvokeError() : 0;
        if (error != 0) return null;
        var ring = new SafeDescriptor((int)number);
        // Linux 5.5 and later.
        if ((setup.features & IORING_FEAT_SINGLE_MMAP) == 0 || (setup.features & IORING_FEAT_NODROP) == 0)
        {
            ring.Dispose();
            error = Errno.ENOSYS;
            return null;
        }

        try
        {
            return new IoUring(ring, setup);
        }
        catch
        {
            ring.Dispose();
            throw;
        }
    }

    /// <summary>A request to fill in, which the next <see cref="Enter"/> submits; null where that must come first.</summary>
    public IoUringSqe* TryGetEntry()
    {
        if (_tail - Volatile.Read(ref *_submissionHead) > _submissionMask) return null;
        var entry = (IoUringSqe*)_entries.Address + (_tail++ & _submissionMask);
        *entry = default;
        return entry;
    }

    /// <summary>Submits what was filled in, and waits for an answer where there is none yet.</summary>
    /// <param name="wait">Whether it waits.</param>
    /// <exception cref="SyscallException">io_uring_enter(2) refused.</exception>
    public void Enter(bool wait)
    {
        Volatile.Write(ref *_submissionTail, _tail);
        using var lease = new DescriptorLease(_ring);
        while (true)
        {
            wait &= Volatile.Read(ref *_completionTail) == *_completionHead;
            if (_submitted == _tail && !wait) return;
            var result = syscall(SystemCalls.Number("io_uring_enter"), lease.Number, _tail - _submitted, wait ? 1u : 0, wait ? IORING_ENTER_GETEVENTS : 0, null, 0);
            if (result >= 0)
            {
                _submitted += (uint)result;
                continue;
            }

            var error = Marshal.GetLastPInvokeError();
            if (error == Errno.EINTR) continue;
            if (error is not (Errno.EBUSY or Errno.EAGAIN)) throw new SyscallException("io_uring_enter", error, "Submitting disk requests");
            // EBUSY: answers must be taken first. EAGAIN: the kernel has no memory for requests, which the end of others gives back.
            if (Volatile.Read(ref *_completionTail) != *_completionHead) return;
            Thread.Sleep(1);
        }
    }

    /// <summary>Takes the next answer; false where there is none.</summary>
    public bool TryTake(out IoUringCqe completion)
    {
        var head = *_completionHead;
        if (head == Volatile.Read(ref *_completionTail))
        {
            completion = default;
            return false;
        }

        completion = _completions[head & _completionMask];
        Volatile.Write(ref *_completionHead, head + 1);
        return true;
    }

    public void Dispose()
    {
        _entries.Dispose();
        _rings.Dispose();
        _ring.Dispose();
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint syscall(nint number, nuint entries, IoUringParams* setup);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint syscall(nint number, nint ring, nuint submit, nuint complete, nuint flags, void* signals, nuint size);
}
