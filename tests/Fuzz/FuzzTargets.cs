using GuestMemory.Core.Images;
using GuestMemory.Fuzz.Targets;

namespace GuestMemory.Fuzz;

/// <summary>Every parser of bytes that come from a socket, a file or another process.</summary>
internal static class FuzzTargets
{
    public static IReadOnlyList<FuzzTarget> All { get; } =
    [
        new("mapping-list", "the JSON of a hand-over's mapping list", MappingListTarget.Run),
        new("handover", "a hand-over stream: how it is cut, which descriptors come along, the bytes", HandoverTarget.Run, HandoverTarget.Missing),
        new("supervisor", "a VMM and the supervisor: what comes along, how it is cut, events of the VM, the hand-over stream", SupervisorTarget.Run, HandoverTarget.Missing),
        new("tube-json", "what comes through tubes: which type, how many descriptors, its JSON; a session's packets are lines", TubeTarget.Run),
        new("control-socket", "the handler's process: which end, then lines or a message", ControlTarget.Run),
        new("shared-json", "JSON in memfds: figures, written pages, the list of a VM", SharedJsonTarget.Run),
        new("chunked-image", "an image of chunks, whose checksums are put right where the first byte says so", ChunkedImageTarget.Run),
        new("avml-image", "an AVML file, opened as memory and read", MemoryImageTarget.Of(ImageFormat.Avml)),
        new("elf-core", "an ELF core file, opened as memory and read", MemoryImageTarget.Of(ImageFormat.ElfCore)),
        new("kdump-image", "a dump of kdump, flattened or not, opened as memory and read", MemoryImageTarget.Of(ImageFormat.Kdump)),
        new("lime-image", "a LiME file, opened as memory and read", MemoryImageTarget.Of(ImageFormat.LiME)),
        new("memory-ranges", "the state.json of a cloud-hypervisor snapshot", MemoryImageTarget.RunState),
        new("touch-record", "a record of touches", TouchRecordTarget.Run),
        new("dirty-log", "a dirty log: a stretch of the guest (two numbers of 8 bytes), then the file", DirtyLogTarget.Run),
        new("dirty-bitmap-file", "the file of a dirty bitmap, whose checksum is put right where the first byte says so", DirtyBitmapFileTarget.Run),
        new("vm-state", "what a predecessor left of a VM: pieces (offset 2, length 1, bytes) of its state", VmStateTarget.Run, HandoverTarget.Missing),
        new("service-manager", "what systemd passes: LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES, a line each", ServiceManagerTarget.Run),
        new("metrics", "a request to the metrics endpoint", MetricsTarget.Run),
        new("kernel-data", "what a Linux kernel keeps in its memory: BTF, VMCOREINFO, or tables of symbols and where they are", KernelDataTarget.Run),
        new("nbd", "a client of exported memory: its flags, options and requests", NbdTarget.Run),
        new("vhost-user", "a vhost-user front end and its guest: requests with descriptors, bytes in the memory, kicks", VhostUserTarget.Run),
        new("stored-image", "0 and a manifest without its digest; or a compression, a length of two bytes, and a chunk to unpack", StoredImageTarget.Run),
        new("arguments", "the command line of the handler's process, an argument a line", ArgumentsTarget.Run),
    ];
}
