using System.Text;

namespace GuestMemory.Core.Processes;

/// <summary>The program that a process runs, and its arguments.</summary>
internal sealed record VmmProgram(int ProcessId, string Name, VmmKind Kind, IReadOnlyList<string> Arguments)
{
    private const int MaxArguments = 1 << 20;
    private const string Deleted = " (deleted)";

    /// <summary>A name for regions and messages.</summary>
    public string ShortName => Kind switch
    {
        VmmKind.Qemu => "qemu",
        VmmKind.Firecracker => "firecracker",
        VmmKind.CloudHypervisor => "cloud-hypervisor",
        VmmKind.Crosvm => "crosvm",
        _ => Name,
    };

    /// <exception cref="GuestMemoryException">ProcessNotFound, ProcessDenied.</exception>
    public static VmmProgram Of(int processId)
    {
        // A thread of the kernel has no program.
        var path = ProcessFile.Open(processId, "exe", static path => new FileInfo(path).LinkTarget);
        path = path?.EndsWith(Deleted, StringComparison.Ordinal) == true ? path[..^Deleted.Length] : path;
        var name = path is null ? ProcessFile.Read(processId, "comm", static lines => lines.FirstOrDefault("")) : Path.GetFileName(path);
        return new VmmProgram(processId, name, KindOf(name), ProcessFile.Open(processId, "cmdline", ReadArguments));
    }

    public static VmmKind KindOf(string name) => name switch
    {
        _ when name.StartsWith("qemu-system-", StringComparison.Ordinal) || name is "qemu-kvm" or "kvm" => VmmKind.Qemu,
        _ when name.StartsWith("firecracker", StringComparison.Ordinal) => VmmKind.Firecracker,
        _ when name.StartsWith("cloud-hypervisor", StringComparison.Ordinal) => VmmKind.CloudHypervisor,
        _ when name.StartsWith("crosvm", StringComparison.Ordinal) => VmmKind.Crosvm,
        _ => VmmKind.Other,
    };

    private static string[] ReadArguments(string path)
    {
        using var file = File.OpenRead(path);
        var bytes = new byte[MaxArguments];
        var count = file.ReadAtLeast(bytes, bytes.Length, throwOnEndOfStream: false);
        return Encoding.UTF8.GetString(bytes, 0, count).TrimEnd('\0').Split('\0');
    }
}
