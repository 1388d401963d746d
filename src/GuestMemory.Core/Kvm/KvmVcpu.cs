using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Kvm;

/// <summary>
/// A minimal vCPU of x86-64: it runs instructions in real mode or long mode until the guest halts, or accesses a port or an address
/// without memory.
/// </summary>
public sealed unsafe partial class KvmVcpu : IDisposable
{
    private readonly KvmVm _owner;
    private readonly SafeDescriptor _vcpu;
    private readonly SafeMapping _run;
    private readonly SafeMapping? _ring;
    private readonly uint _ringEntries;
    private readonly Lock _lock = new();
    private uint _ringNext;
    private int _thread;
    private int _stopping;

    internal KvmVcpu(KvmVm owner, SafeDescriptor vm, int id, int ringEntries)
    {
        if (RuntimeInformation.ProcessArchitecture != Architecture.X64)
            throw new GuestMemoryException(GuestMemoryError.KvmUnsupported, "vCPUs are those of x86-64 only.");
        _owner = owner;
        _ringEntries = (uint)ringEntries;
        Id = id;
        _vcpu = KvmApi.CreateVcpu(vm, id);
        try
        {
            _run = KvmApi.MapRun(_vcpu);
            if (ringEntries != 0) _ring = KvmApi.MapRing(_vcpu, (nuint)(ringEntries * sizeof(KvmDirtyGfn)));
        }
        catch
        {
            _run?.Dispose();
            _vcpu.Dispose();
            throw;
        }
    }

    /// <summary>Its index in the VM, from 0.</summary>
    public int Id { get; }

    /// <summary>How often KVM stopped the guest because its dirty ring was full (KVM_EXIT_DIRTY_RING_FULL); a larger ring costs fewer exits.</summary>
    public long DirtyRingFullExits { get; private set; }

    /// <summary>Which vCPU of which VM, for debuggers and messages.</summary>
    public override string ToString() => $"vCPU {Id} of {_owner}";

    /// <summary>Whether it is closed, or about to be.</summary>
    internal bool IsStopped => Volatile.Read(ref _stopping) != 0;

    private KvmRun* State => (KvmRun*)_run.Address;

    /// <summary>Runs the guest until it halts or needs the VMM; while the VM is paused (<see cref="KvmVm.Pause"/>) it waits. One thread at a time.</summary>
    /// <param name="cancellation">Interrupts the guest, or ends the wait; the next run continues it.</param>
    /// <exception cref="OperationCanceledException">The guest was interrupted.</exception>
    /// <exception cref="GuestMemoryException">VmDisposed; DirtyRingOverrun; PageNotAccessible: a page of the guest's memory cannot be accessed.</exception>
    public KvmExit Run(CancellationToken cancellation = default)
    {
        while (true)
        {
            // Not under the lock: a thread that reads the state of a vCPU of a paused VM needs it.
            _owner.Gate.WaitUntilOpen(this, cancellation);
            lock (_lock)
            {
                ThrowIfStopped();
                _thread = Signals.Prepare();
                Volatile.Write(ref State->immediate_exit, 0);
                if (!_owner.Gate.TryEnter(this)) continue;
                try
                {
                    using var registration = cancellation.UnsafeRegister(static vcpu => ((KvmVcpu)vcpu!).Interrupt(), this);
                    // Who stops it says so first, and then interrupts it.
                    ThrowIfStopped();
                    if (RunOnce(cancellation) is { } exit) return exit;
                }
                finally
                {
                    if (!IsStopped) Volatile.Write(ref State->immediate_exit, 0);
                    _owner.Gate.Leave(this);
                }
            }
        }
    }

    /// <summary>Gives the guest the value of the read that <see cref="Run"/> returned with; the next run delivers it.</summary>
    public void SetReadValue(ulong value)
    {
        lock (_lock)
        {
            ThrowIfStopped();
            var state = State;
            if (state->exit_reason == KvmApi.KVM_EXIT_MMIO)
            {
                state->mmio_data = value;
                return;
            }

            if (state->exit_reason != KvmApi.KVM_EXIT_IO) return;
            new ReadOnlySpan<byte>(&value, state->io_size).CopyTo(new Span<byte>((byte*)state + state->io_data_offset, state->io_size));
        }
    }

    /// <summary>Interrupts the guest, waits until it has stopped, and closes the vCPU.</summary>
    public void Dispose()
    {
        if (Interlocked.Exchange(ref _stopping, 1) != 0) return;
        Interrupt();
        _owner.Gate.Wake();
        lock (_lock)
        {
            _owner.CloseVcpu(() =>
            {
                _run.Dispose();
                _ring?.Dispose();
                _vcpu.Dispose();
            });
        }
    }

    /// <summary>Takes the entries of the dirty ring; returns their number.</summary>
    internal int HarvestRing(Action<uint, ulong> mark)
    {
        if (_ring is null || _ring.IsClosed) return 0;
        var count = 0;
        while (count < _ringEntries)
        {
            var entry = (KvmDirtyGfn*)_ring.Address + (_ringNext & (_ringEntries - 1));
            if ((Volatile.Read(ref entry->flags) & KvmApi.KVM_DIRTY_GFN_F_DIRTY) == 0) return count;
            mark(entry->slot, entry->offset);
            Volatile.Write(ref entry->flags, KvmApi.KVM_DIRTY_GFN_F_RESET);
            _ringNext++;
            count++;
        }

        return count;
    }

    /// <summary>Runs the guest; null where it was interrupted: the flag that did so must go before the next run.</summary>
    private KvmExit? RunOnce(CancellationToken cancellation)
    {
        while (true)
        {
            cancellation.ThrowIfCancellationRequested();
            var error = KvmApi.Try(_vcpu, KvmApi.KVM_RUN, 0, out _);
            ThrowIfStopped();
            switch (error)
            {
                case 0 when State->exit_reason == KvmApi.KVM_EXIT_DIRTY_RING_FULL:
                    DirtyRingFullExits++;
                    _owner.HarvestRings();
                    if (_owner.Gate.IsPaused) return null;
                    continue;
                case 0:
                    return Exit(State);
                case Errno.EINTR or Errno.EAGAIN:
                    return null;
                case Errno.EFAULT:
                    throw new SyscallException("ioctl(KVM_RUN)", error, $"Running vCPU {Id}", GuestMemoryError.PageNotAccessible, "A page of the guest's memory is not accessible: its file was truncated, or its handler poisoned it.");
                default:
                    throw new SyscallException("ioctl(KVM_RUN)", error, $"Running vCPU {Id}");
            }
        }
    }

    private static KvmExit Exit(KvmRun* state)
    {
        var reason = (KvmExitReason)state->exit_reason;
        switch (reason)
        {
            case KvmExitReason.Mmio:
                return new KvmExit(reason, state->mmio_phys_addr, state->mmio_len, state->mmio_is_write != 0, state->mmio_is_write != 0 ? Narrow(state->mmio_data, state->mmio_len) : 0);
            case KvmExitReason.Io:
                var write = state->io_direction == KvmApi.KVM_EXIT_IO_OUT;
                var data = *(uint*)((byte*)state + state->io_data_offset);
                return new KvmExit(reason, state->io_port, state->io_size, write, write ? Narrow(data, state->io_size) : 0);
            default:
                return new KvmExit(reason);
        }
    }

    private static ulong Narrow(ulong value, uint size) => size >= 8 ? value : value & (1UL << (int)(size * 8)) - 1;

    internal void Interrupt()
    {
        // The flag stops a run that has not entered the guest yet; the signal stops one that has.
        Volatile.Write(ref State->immediate_exit, 1);
        if (_thread != 0) Signals.Wake(_thread);
    }

    private void ThrowIfStopped()
    {
        if (IsStopped) throw new GuestMemoryException(GuestMemoryError.VmDisposed, $"vCPU {Id} was stopped: its VM was removed.");
    }
}
