namespace GuestMemory.Core.Userfault;

/// <summary>What happens besides in an export of a VM that runs (<see cref="UffdServedVm.ExportLive"/>, <see cref="LiveExport.ExportLive"/>).</summary>
public sealed record LiveExportOptions
{
    /// <summary>
    /// Stops every thread of the VMM (<c>ptrace(2)</c>) before the instant, until <see cref="AtInstant"/> has returned. Needs the right to trace that process, which
    /// must not be this one. Of a VM of this process the vCPUs are held (<see cref="Kvm.KvmVm.Pause"/>).
    /// </summary>
    public bool StopsVmm { get; init; }

    /// <summary>Called right after the instant, on the calling thread; null for nothing. Where it throws, the export ends with that and leaves no file.</summary>
    public Action? AtInstant { get; init; }

    /// <summary>Computes the image's SHA-256, out of the file, and writes it beside the image (FILE.sha256).</summary>
    public bool Digest { get; init; }

    /// <summary>Told the bytes done, about every 64 KiB; null for nothing.</summary>
    public Action<ulong>? Progress { get; init; }
}
