using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Processes;

/// <summary>The guest memory in the mappings of a VMM, and where in the guest it lies.</summary>
/// <param name="Ranges">The ranges, each with its place in the process.</param>
/// <param name="Source">How that is known, as a sentence.</param>
/// <param name="Warnings">What may be missing.</param>
internal sealed record VmmMemory(IReadOnlyList<GuestLayoutRange> Ranges, string Source, IReadOnlyList<string> Warnings)
{
    // Stacks, heaps and buffers of a VMM are smaller.
    private const ulong LeastGuest = 16UL << 20;
    private const ulong Gibi = 1UL << 30;
    // Of those that another process's command line names.
    private const int MaxMonitors = 8, MaxBackends = 256;

    /// <exception cref="GuestMemoryException">LayoutUnknown, MonitorFailed, ProcessNotFound, ProcessDenied, ZeroSize.</exception>
    public static VmmMemory Find(VmmProgram program, AttachOptions options)
    {
        if (options.MonitorPath is not null && (program.Kind != VmmKind.Qemu || options.Layout.Count > 0))
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "A monitor is asked for the layout of a QEMU's memory; it is given already, or this is no QEMU.");
        var mappings = new VmmMappings(program);
        if (options.Layout.Count > 0) return new VmmMemory(mappings.Place(options.Layout), "The caller said where the memory lies.", []);
        return program.Kind switch
        {
            VmmKind.Qemu => OfQemu(program, mappings, options),
            VmmKind.Firecracker => OfFirecracker(mappings),
            VmmKind.CloudHypervisor => OfCloudHypervisor(program, mappings),
            _ => OfCrosvm(mappings),
        };
    }

    private static VmmMemory OfQemu(VmmProgram program, VmmMappings mappings, AttachOptions attach)
    {
        var (options, monitorPath) = (new QemuOptions(program.Arguments), attach.MonitorPath);
        var reasons = new List<string>();
        foreach (var path in monitorPath is null ? options.MonitorPaths.Distinct(StringComparer.Ordinal).Take(MaxMonitors).Select(path => ReachableFrom(program.ProcessId, path)) : [monitorPath])
        {
            try
            {
                using var monitor = QemuMonitor.Connect(path, program.ProcessId, attach.Cancellation);
                return new VmmMemory(monitor.GetLayout(options), $"The monitor at {path} said where the memory lies.", []);
            }
            catch (GuestMemoryException exception) when (monitorPath is null)
            {
                reasons.Add(exception.Message);
            }
        }

        attach.Cancellation.ThrowIfCancellationRequested();
        var machine = options.Machine;
        var architecture = program.Name.StartsWith("qemu-system-", StringComparison.Ordinal) ? program.Name["qemu-system-".Length..] : RuntimeInformation.ProcessArchitecture == Architecture.X64 ? "x86_64" : "aarch64";
        var blocks = BlocksOf(options, mappings);
        var size = blocks.Aggregate(0UL, static (sum, block) => sum + block.Size);
        var layout = VmmLayout.OfQemu(architecture, machine, size)
            ?? throw mappings.Unknown($"the addresses of machine '{machine.GetValueOrDefault("type", "none")}' of {architecture} with 0x{size:x} bytes are not known, and no monitor says them.{Told(reasons)}");
        string[] warnings = options.CanGrow ? [$"Memory that was plugged into the VM of process {program.ProcessId} is not seen: only a monitor says where it is.{Told(reasons)}"] : [];
        return new VmmMemory(VmmMappings.Lay(layout, blocks), $"The addresses are those of machine '{machine.GetValueOrDefault("type", "pc")}' of {architecture}.{Told(reasons)}", warnings);
    }

    private static string Told(List<string> reasons) => reasons.Count == 0 ? "" : $" {string.Join(" ", reasons)}";

    /// <summary>The blocks of the machine's main memory, in the order in which the machine has them.</summary>
    private static IReadOnlyList<(ulong Address, ulong Size)> BlocksOf(QemuOptions options, VmmMappings mappings)
    {
        string[] ids = options.NodeBackends.Count > 0 ? [.. options.NodeBackends] : options.Machine.TryGetValue("memory-backend", out var id) ? [id] : [];
        if (ids.Length > MaxBackends) throw mappings.Unknown($"its command line names {ids.Length} memory objects; more than {MaxBackends} are not looked for");
        if (ids.Length == 0)
        {
            var size = options.Memory ?? throw mappings.Unknown("the size of its memory cannot be read from its command line");
            return [mappings.FindOne(size, mapping => options.MemoryPath is null ? VmmMappings.IsAnonymous(mapping) : mapping.Inode != 0)];
        }

        return [.. ids.Select(id =>
        {
            if (!options.Backends.TryGetValue(id, out var backend) || QemuOptions.SizeOf(backend) is not { } size) throw mappings.Unknown($"the memory object '{id}' is not on its command line");
            return mappings.FindOne(size, backend["qom-type"] switch
            {
                "memory-backend-ram" => VmmMappings.IsAnonymous,
                "memory-backend-memfd" => static mapping => mapping.Path.StartsWith("/memfd:", StringComparison.Ordinal),
                _ => static mapping => mapping.Inode != 0 && !mapping.Path.StartsWith("/memfd:", StringComparison.Ordinal),
            });
        })];
    }

    private static VmmMemory OfFirecracker(VmmMappings mappings)
    {
        var blocks = mappings.LargestFile(LeastGuest);
        var architecture = RuntimeInformation.ProcessArchitecture;
        if (blocks.Count > 0)
        {
            var size = blocks.Aggregate(0UL, static (sum, block) => sum + block.Size);
            return new VmmMemory(VmmMappings.Lay(VmmLayout.OfFirecracker(size, architecture), blocks), "The addresses are those of Firecracker.", []);
        }

        var all = mappings.Anonymous(LeastGuest);
        if (all.Count == 0) throw mappings.Unknown("it has no memory that a guest can have");
        // One mapping for each range; above 3 GiB the other has the rest.
        var first = all[0];
        if (architecture != Architecture.X64 || first.Size < 3 * Gibi) blocks = [(first.Address, first.Size)];
        else if (all is [{ Size: 3 * Gibi }]) blocks = [(first.Address, first.Size)];
        else if (all is [_, _] && all.Count(static mapping => mapping.Size == 3 * Gibi) == 1) blocks = [.. all.OrderBy(static mapping => mapping.Size != 3 * Gibi).Select(static mapping => (mapping.Address, mapping.Size))];
        else throw mappings.Unknown("several of its mappings may be the memory below 3 GiB, or that from 4 GiB on");
        return new VmmMemory(VmmMappings.Lay(VmmLayout.OfFirecracker(blocks.Aggregate(0UL, static (sum, block) => sum + block.Size), architecture), blocks), "The addresses are those of Firecracker.", []);
    }

    private static VmmMemory OfCloudHypervisor(VmmProgram program, VmmMappings mappings)
    {
        var arguments = program.Arguments;
        if (arguments.Any(static argument => argument.StartsWith("--memory-zone", StringComparison.Ordinal))) throw mappings.Unknown("it has memory zones of its own");
        var at = arguments.ToList().FindIndex(static argument => argument == "--memory" || argument.StartsWith("--memory=", StringComparison.Ordinal));
        var text = at < 0 ? "" : arguments[at].StartsWith("--memory=", StringComparison.Ordinal) ? arguments[at]["--memory=".Length..] : at + 1 < arguments.Count ? arguments[at + 1] : "";
        var size = QemuOptions.Parse(text, "size").TryGetValue("size", out var number) && number.Length > 0 ? QemuOptions.SizeOf(number, 1) : 512UL << 20;
        if (size is null or 0) throw mappings.Unknown("the size of its memory cannot be read from its command line");
        string[] warnings = text.Contains("hotplug", StringComparison.Ordinal) ? [$"Memory that was plugged into the VM of process {program.ProcessId} is not seen."] : [];
        return new VmmMemory(mappings.Place(VmmLayout.OfCloudHypervisor(size.Value, RuntimeInformation.ProcessArchitecture)), "The addresses are those of cloud-hypervisor.", warnings);
    }

    private static VmmMemory OfCrosvm(VmmMappings mappings)
    {
        var blocks = mappings.OfFile("/memfd:crosvm_guest");
        if (blocks.Count == 0) throw mappings.Unknown("it has no memfd 'crosvm_guest'; another process of the same VM may");
        var layout = VmmLayout.OfCrosvm([.. blocks.Select(static block => block.Size)], RuntimeInformation.ProcessArchitecture) ?? throw mappings.Unknown($"its memory has {blocks.Count} parts");
        return new VmmMemory(VmmMappings.Lay(layout, blocks), "The addresses are those of crosvm.", []);
    }

    /// <summary>A path of another process, which may have another root and another current folder.</summary>
    private static string ReachableFrom(int process, string path) => ProcessFile.Open(process, path.StartsWith('/') ? "root" : "cwd", link =>
    {
        // Short where it can be: a socket's address holds 107 bytes.
        if (path.StartsWith('/') && new FileInfo(link).LinkTarget == "/") return path;
        return path.StartsWith('/') ? $"{link}{path}" : $"{link}/{path}";
    });
}
