using System.Text.Json;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>
/// What of a VM outlives every worker: its connection, its process, its userfaultfd, its state (see <see cref="UffdVmState"/>) and its
/// mapping list, each as a descriptor, so that a worker, or systemd, can be given them.
/// </summary>
internal sealed class VmRecord : IDisposable
{
    private const int MaxListBytes = 4 << 20;

    // Of a list, for what may change in it.
    private const int ListRoom = 2 * UffdVmName.MaxLength;

    private int _reads = -1;
    private int _stalledLooks;

    private VmRecord(int id, SafeDescriptor socket, SafeDescriptor process, SafeDescriptor userfaultfd, SafeDescriptor stateFile, SafeDescriptor listFile, SafeDescriptor? memory, VmList list, bool isNew)
    {
        Id = id;
        Socket = socket;
        Process = process;
        Userfaultfd = userfaultfd;
        StateFile = stateFile;
        ListFile = listFile;
        MemoryFile = memory;
        List = list;
        Features = Core.Interop.Userfaultfd.FeaturesOf(userfaultfd.Number);
        State = new UffdVmState(UffdVmState.PagesOf(list.Mappings), stateFile, isNew);
        State.Lock();
        Writes = new WriteTracker(State, list.Mappings, userfaultfd, list.ProcessId);
    }

    public int Id { get; }

    /// <summary>What it is served from. Set by the receiver, or where it is restored.</summary>
    public ServedImage Image { get; set; } = null!;

    /// <summary>What it came over, which owns socket and process. Set by the receiver.</summary>
    public UffdConnection Connection { get; set; } = null!;

    /// <summary>The connection's socket.</summary>
    public SafeDescriptor Socket { get; }

    /// <summary>The VMM's process as a pidfd; its owner is the connection's.</summary>
    public SafeDescriptor Process { get; }

    public SafeDescriptor Userfaultfd { get; }

    public SafeDescriptor StateFile { get; }

    public SafeDescriptor ListFile { get; }

    /// <summary>The memfd by which its memory can be read; null where the VMM handed none over. No worker needs it.</summary>
    public SafeDescriptor? MemoryFile { get; }

    /// <summary>What is known of it; <see cref="Set"/> changes it for later processes too.</summary>
    public VmList List { get; set; }

    /// <summary>The features that the userfaultfd was opened with, which a worker cannot read.</summary>
    public ulong Features { get; }

    public UffdVmState State { get; }

    /// <summary>Whether a worker has had it, so that its state and its waiting faults are to be looked at.</summary>
    public bool IsUsed { get; set; }

    /// <summary>What went wrong with it last; null where nothing did.</summary>
    public string? Error { get; set; }

    /// <summary>Whether the present worker was given it.</summary>
    public bool IsOffered { get; set; }

    /// <summary>Whether the present worker has answered the faults that waited when it was given the VM, which another one had before.</summary>
    public bool IsCaughtUp { get; set; }

    /// <summary>How an operator has its service end, which every worker is told; null where it goes on.</summary>
    public UffdOnError? Order { get; set; }

    /// <summary>The number of the answer for which its marks were taken last.</summary>
    public int TakenBy { get; set; }

    /// <summary>A VM that has just handed its memory over; what it handed over is taken over.</summary>
    public static VmRecord Create(int id, string name, UffdConnection connection, UffdHandover handover)
    {
        var peer = connection.Peer;
        var list = new VmList { ProcessId = peer.pid, User = peer.uid, Group = peer.gid, Mappings = handover.Mappings, Name = name };
        SafeDescriptor? state = null, file = null;
        try
        {
            state = Memfd.CreateSealed("uffd-state", (long)UffdVmState.SizeOf(UffdVmState.PagesOf(handover.Mappings)), 0);
            file = JsonFile.Create("uffd-list", list, HostJson.Default.VmList, ListRoom);
            return new VmRecord(id, connection.Socket, connection.Process, handover.Userfaultfd, state, file, handover.Memory, list, isNew: true);
        }
        catch
        {
            state?.Dispose();
            file?.Dispose();
            throw;
        }
    }

    /// <summary>A VM out of descriptors that were kept elsewhere. They are taken over only where nothing is wrong with them.</summary>
    /// <exception cref="GuestMemoryException">They are not what this program once gave away.</exception>
    public static VmRecord Restore(int id, SafeDescriptor socket, SafeDescriptor process, SafeDescriptor userfaultfd, SafeDescriptor stateFile, SafeDescriptor listFile, SafeDescriptor? memory)
    {
        if (!Core.Interop.Userfaultfd.IsUserfaultfd(userfaultfd.Number)) throw new GuestMemoryException(GuestMemoryError.HandoverNotUserfaultfd, "A descriptor that was kept as a userfaultfd is not one.");
        if (!Pidfd.IsPidfd(process)) throw new GuestMemoryException(GuestMemoryError.InvalidMapping, "A descriptor that was kept as the VMM's process is not one.");
        var list = ReadList(listFile);
        if (memory is not null) UffdMappingList.CheckMemory(list.Mappings, memory);
        return new VmRecord(id, socket, process, userfaultfd, stateFile, listFile, memory, list, isNew: false) { IsUsed = true };
    }

    /// <summary>Reads the list of a VM out of its memfd, and checks what can be checked without the image.</summary>
    /// <exception cref="GuestMemoryException">InvalidMapping.</exception>
    public static VmList ReadList(SafeDescriptor file)
    {
        try
        {
            var list = JsonFile.Read(file, MaxListBytes, HostJson.Default.VmList);
            UffdMappingList.Validate(list.Mappings, ulong.MaxValue);
            return list;
        }
        catch (Exception exception) when (exception is JsonException or IOException or NotSupportedException)
        {
            throw new GuestMemoryException(GuestMemoryError.InvalidMapping, $"The mapping list of a VM cannot be read: {JsonErrorText.Of(exception)}", exception);
        }
    }

    /// <summary>Changes what is known of it, also for a process after this one: the name, and what follows on an error.</summary>
    /// <exception cref="GuestMemoryException">ControlFailed: another program made the list, without room for that.</exception>
    public void Set(VmList list)
    {
        try
        {
            JsonFile.Write(ListFile, list, HostJson.Default.VmList);
        }
        catch (IOException exception)
        {
            throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"VM {Id} cannot be changed: {exception.Message}", exception);
        }

        List = list;
    }

    /// <summary>What it wrote or gave back.</summary>
    public WriteTracker Writes { get; }

    /// <summary>What was done for it, up to now.</summary>
    /// <param name="onError">What follows where a page cannot be read and nothing else was said of this VM.</param>
    public UffdFigures Figures(UffdOnError onError) => State.Figures(List.ProcessId, Error, StateFile) with
    {
        VmId = Id,
        VmName = List.Name,
        Image = Image.Name,
        SharesMemory = MemoryFile is not null,
        IsLimited = State.IsLimited,
        OnError = List.OnError ?? onError,
    };

    /// <summary>How often in a row faults or events waited and none had been read since the last look, this one included.</summary>
    public int CountStalledLooks()
    {
        var reads = State.Reads.Count;
        Span<PollFd> entry = [new PollFd { fd = Userfaultfd.Number, events = Poll.POLLIN }];
        var isWaiting = Poll.Wait(entry, 0) > 0 && (entry[0].revents & Poll.POLLIN) != 0;
        _stalledLooks = isWaiting && reads == _reads ? _stalledLooks + 1 : 0;
        _reads = reads;
        return _stalledLooks;
    }

    /// <summary>Another worker has it from now on.</summary>
    public void ForgetLooks() => _stalledLooks = 0;

    /// <summary>Closes everything but the connection, the process, and the state, which <see cref="VmRecords"/> releases when its figures are final.</summary>
    public void Dispose()
    {
        Userfaultfd.Dispose();
        StateFile.Dispose();
        ListFile.Dispose();
        MemoryFile?.Dispose();
    }
}
