namespace GuestMemory.Core.Linux;

/// <summary>Where the fields of a kernel's tasks are, in bytes, by its BTF.</summary>
internal sealed class TaskFields
{
    // The largest task_struct known has 13 KiB.
    private const int MaxTask = 65536;

    public TaskFields(BtfTypes types)
    {
        var task = types.Offsets("task_struct", "tasks", "pid", "comm", "mm", "flags", "exit_state", "__state", "state", "tgid", "real_parent", "cred", "signal", "start_time", "real_cred");
        Tasks = Need(task[0], "tasks");
        Pid = Need(task[1], "pid");
        Comm = Need(task[2], "comm");
        Mm = Need(task[3], "mm");
        Flags = Need(task[4], "flags");
        ExitState = Need(task[5], "exit_state");
        // Renamed, and halved, in 5.14.
        State = Need(task[6] ?? task[7], "__state");
        Tgid = Need(task[8], "tgid");
        RealParent = Need(task[9], "real_parent");
        Cred = Need(task[13] ?? task[10], "real_cred");
        Signal = Need(task[11], "signal");
        StartTime = task[12];
        Size = task.Max() is { } last && last <= MaxTask ? last + 16 : throw KernelData.Invalid("The kernel's BTF has a task_struct that is too large.");
        Pgd = Need(types.Offsets("mm_struct", "pgd")[0], "pgd");
        Uid = Need(types.Offsets("cred", "uid")[0], "uid");
        Threads = types.Offsets("signal_struct", "nr_threads")[0];

        static int Need(int? offset, string field) => offset ?? throw KernelData.Invalid($"The kernel's BTF does not say where the field {field} of its tasks is.");
    }

    public int Tasks { get; }

    public int Pid { get; }

    public int Tgid { get; }

    public int Comm { get; }

    public int Mm { get; }

    public int Flags { get; }

    public int State { get; }

    public int ExitState { get; }

    public int RealParent { get; }

    public int Cred { get; }

    public int Signal { get; }

    public int? StartTime { get; }

    /// <summary>How much of a task has all of them.</summary>
    public int Size { get; }

    public int Pgd { get; }

    public int Uid { get; }

    public int? Threads { get; }
}
