using System.Buffers.Binary;
using System.Text;
using GuestMemory.Core.Paging;

namespace GuestMemory.Core.Linux;

/// <summary>
/// Walks the list of a kernel's tasks (init_task.tasks), one for each process. The guest may change it meanwhile: a way that comes back to
/// where it was, or that leads nowhere, ends the list.
/// </summary>
internal sealed class TaskList
{
    // PID_MAX_LIMIT.
    private const int MaxCount = 4 << 20;

    private const uint KernelThreadFlag = 0x00200000;   // PF_KTHREAD

    private readonly GuestKernel _kernel;
    private readonly GuestVirtualMemory _space;
    private readonly CancellationToken _cancellation;
    private readonly TaskFields _fields;
    private readonly ulong _first;
    private readonly byte[] _task;

    public TaskList(GuestKernel kernel, CancellationToken cancellation)
    {
        (_kernel, _space, _cancellation) = (kernel, kernel.Space, cancellation);
        if (kernel.BtfAddress is not { } address || kernel.BtfSize is not { } size)
        {
            throw new GuestMemoryException(GuestMemoryError.KernelTypesNotFound,
                $"{kernel} carries no BTF (CONFIG_DEBUG_INFO_BTF), so that where the fields of its tasks are is not known. Kernels of distributions have it since 2020.");
        }

        var types = BtfTypes.Parse(KernelData.Read(_space.Memory, address, (long)size, "The kernel's BTF", cancellation));
        _fields = new TaskFields(types);
        _task = new byte[_fields.Size];
        _first = FindFirst();
    }

    public IEnumerable<GuestProcess> All(Action<string>? warning)
    {
        // As sets of addresses grow they cost more than the tasks.
        var seen = new HashSet<ulong>();
        var at = Next(_first);
        while (at != _first)
        {
            _cancellation.ThrowIfCancellationRequested();
            if (!seen.Add(at) || seen.Count > MaxCount)
            {
                warning?.Invoke($"The list of the tasks of {_kernel} comes back to the task at virtual address 0x{at:x} after {seen.Count} tasks, and not to its begin: the guest changed it while it was read, or it is damaged. Not every process may be here.");
                yield break;
            }

            GuestProcess? process = null;
            ulong next = 0;
            try
            {
                process = Read(at);
                next = Pointer(_fields.Tasks) - (ulong)_fields.Tasks;
            }
            catch (GuestMemoryException exception) when (IsBadPointer(exception.Error))
            {
                warning?.Invoke($"The list of the tasks of {_kernel} cannot be followed after {seen.Count - 1} tasks: the guest changed it while it was read, or it is damaged. Not every process is here. {exception.Message}");
            }

            if (process is null) yield break;
            yield return process;
            at = next;
        }
    }

    private static bool IsBadPointer(GuestMemoryError error) => GuestVirtualMemory.IsTranslationError(error) || error is GuestMemoryError.InvalidGuestAddress or GuestMemoryError.GuestAddressOverflow or GuestMemoryError.PartialBuffer;

    private ulong Next(ulong task)
    {
        try
        {
            return _space.ReadObject<ulong>(task + (ulong)_fields.Tasks, _cancellation) - (ulong)_fields.Tasks;
        }
        catch (GuestMemoryException exception) when (IsBadPointer(exception.Error))
        {
            throw KernelData.Invalid($"The first task of {_kernel} cannot be read at virtual address 0x{task:x}: {exception.Message}");
        }
    }

    /// <summary>The task of the first processor's idle loop, by its symbol, or where symbols of data are missing by its name.</summary>
    private ulong FindFirst()
    {
        if (_kernel.FindSymbols("init_task").TryGetValue("init_task", out var address)) return address;
        var memory = _space.Memory;
        var search = new MemorySearch(MemoryPattern.FromBytes("swapper/0\0"u8), MemoryPattern.FromBytes("swapper\0"u8)) { Context = 0 };
        foreach (var match in search.Find(memory, new GuestAddress(_kernel.PhysicalAddress), KernelData.ImageReach, cancellation: _cancellation).Take(10_000))
        {
            if (match.Address < (ulong)_fields.Comm) continue;
            var physical = match.Address - (ulong)_fields.Comm;
            if (!memory.CheckRange(new GuestAddress(physical), (ulong)_fields.Size) || KernelData.ReadUInt32(memory, physical + (ulong)_fields.Pid, "A task", _cancellation) != 0) continue;
            // The next task points back to it.
            var list = physical + (ulong)_fields.Tasks;
            var next = KernelData.ReadUInt64(memory, list, "A task", _cancellation);
            if (next < ulong.MaxValue - 16 && _space.TryTranslate(next + 8, _cancellation) is { } back && memory.CheckRange(new GuestAddress(back.Address), 8)
                && KernelData.ReadUInt64(memory, back.Address, "A task", _cancellation) == list + _kernel.Delta) return physical + _kernel.Delta;
        }

        throw KernelData.Invalid($"The first task of {_kernel} was not found: the kernel has no symbols of its data (CONFIG_KALLSYMS_ALL), and no task by the name swapper.");
    }

    private GuestProcess Read(ulong task)
    {
        _space.ReadExact(task, _task, _cancellation);
        var comm = _task.AsSpan(_fields.Comm, Math.Min(16, _task.Length - _fields.Comm));
        var end = comm.IndexOf((byte)0);
        var isKernelThread = (UInt(_fields.Flags) & KernelThreadFlag) != 0;
        return new GuestProcess(_kernel)
        {
            ProcessId = (int)UInt(_fields.Tgid),
            ParentId = (int?)Follow<uint>(_fields.RealParent, _fields.Tgid),
            Name = KernelData.Printable(Encoding.UTF8.GetString(end < 0 ? comm : comm[..end])),
            UserId = Follow<uint>(_fields.Cred, _fields.Uid),
            State = StateOf(UInt(_fields.State), UInt(_fields.ExitState)),
            ThreadCount = _fields.Threads is { } threads ? Follow<int>(_fields.Signal, threads) : null,
            KernelThread = isKernelThread,
            PageTable = isKernelThread ? null : PageTable(),
            // Nanoseconds; the scheduler's clock does not pass TimeSpan.
            StartTime = _fields.StartTime is { } start ? TimeSpan.FromTicks((long)(Pointer(start) / 100)) : null,
            TaskAddress = task,
        };
    }

    private ulong? PageTable() => Follow<ulong>(_fields.Mm, _fields.Pgd) is { } pgd ? _space.TryTranslate(pgd, _cancellation)?.Address : null;

    /// <summary>A field of what a field of the task points to; null where it points to nothing.</summary>
    private T? Follow<T>(int pointer, int field)
        where T : unmanaged
    {
        var address = Pointer(pointer);
        if (address is 0 or > ulong.MaxValue - (1 << 20)) return null;
        try
        {
            return _space.ReadObject<T>(address + (ulong)field, _cancellation);
        }
        catch (GuestMemoryException exception) when (IsBadPointer(exception.Error))
        {
            return null;
        }
    }

    private uint UInt(int field) => BinaryPrimitives.ReadUInt32LittleEndian(_task.AsSpan(field));

    private ulong Pointer(int field) => BinaryPrimitives.ReadUInt64LittleEndian(_task.AsSpan(field));

    /// <summary>As fs/proc/array.c and include/linux/sched.h have it.</summary>
    private static GuestProcessState StateOf(uint state, uint exit)
    {
        const uint Idle = 0x402, NewFrozen = 0x8000, RtLockWait = 0x1000;
        if ((exit & 0x20) != 0) return GuestProcessState.Zombie;
        if ((exit & 0x10) != 0) return GuestProcessState.Dead;
        if ((state & Idle) == Idle) return GuestProcessState.Idle;
        if ((state & 0x01) != 0) return GuestProcessState.Sleeping;
        if ((state & 0x02) != 0 || (state & (NewFrozen | RtLockWait)) != 0) return GuestProcessState.Uninterruptible;
        if ((state & 0x04) != 0) return GuestProcessState.Stopped;
        if ((state & 0x08) != 0) return GuestProcessState.Traced;
        if ((state & 0x40) != 0) return GuestProcessState.Parked;
        return (state & 0x80) != 0 ? GuestProcessState.Dead : GuestProcessState.Running;
    }
}
