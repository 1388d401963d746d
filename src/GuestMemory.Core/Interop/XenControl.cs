using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>
/// libxenctrl, by which domain 0 asks the hypervisor about domains. Its structures are those of one version of Xen, and so is the name of
/// the library; only versions that are known are used.
/// </summary>
internal sealed unsafe class XenControl : IDisposable
{
    /// <summary>The libraries whose structures are known.</summary>
    public static readonly string[] Known = ["libxenctrl.so.4.17"];

    private readonly nint _library;
    private nint _interface;

    private XenControl(nint library) => _library = library;

    /// <summary>Opens the interface to the hypervisor.</summary>
    /// <exception cref="GuestMemoryException">XenUnsupported: no library of a known version; the message names those that were looked for, and others that are there.</exception>
    /// <exception cref="SyscallException">The library cannot open the interface.</exception>
    public static XenControl Open()
    {
        var library = TryLoad() ?? throw new GuestMemoryException(GuestMemoryError.XenUnsupported, $"{Missing()} {Remedy}");
        var control = new XenControl(library);
        control._interface = ((delegate* unmanaged<nint, nint, uint, nint>)control.Function("xc_interface_open"))(0, 0, 0);
        if (control._interface != 0) return control;
        var error = Marshal.GetLastSystemError();
        control.Dispose();
        throw new SyscallException("xc_interface_open", error, "Opening the interface to the hypervisor");
    }

    /// <summary>What helps where no library is there.</summary>
    public static string Remedy => "Install the one of this host's Xen; on Debian 12 it is in the package libxenmisc4.17.";

    /// <summary>The libraries that are missing, and those that are there instead; null where a known one is there.</summary>
    public static string? FindMissing()
    {
        if (TryLoad() is not { } library) return Missing();
        NativeLibrary.Free(library);
        return null;
    }

    /// <summary>The first domain from a number on; false where there is none.</summary>
    /// <exception cref="SyscallException">The hypervisor refused.</exception>
    public bool TryGetDomain(uint from, out XenDomainInfo domain)
    {
        // One at a time: how long the structure is depends on the processor, what is read of it does not.
        var buffer = stackalloc byte[512];
        var found = ((delegate* unmanaged<nint, uint, uint, byte*, int>)Function("xc_domain_getinfolist"))(_interface, from, 1, buffer);
        domain = *(XenDomainInfo*)buffer;
        return found >= 0 ? found == 1 : throw Failure("xc_domain_getinfolist", "Asking for the domains");
    }

    /// <summary>The last frame that a domain may have memory at.</summary>
    /// <exception cref="SyscallException">The hypervisor refused, or there is no such domain (ESRCH).</exception>
    public ulong GetLastFrame(uint domain)
    {
        ulong last;
        return ((delegate* unmanaged<nint, uint, ulong*, int>)Function("xc_domain_maximum_gpfn"))(_interface, domain, &last) >= 0
            ? last
            : throw Failure("xc_domain_maximum_gpfn", $"Asking for the size of domain {domain}");
    }

    public void Dispose()
    {
        if (_interface != 0) _ = ((delegate* unmanaged<nint, int>)Function("xc_interface_close"))(_interface);
        _interface = 0;
        NativeLibrary.Free(_library);
    }

    private static nint? TryLoad()
    {
        foreach (var name in Known)
        {
            if (NativeLibrary.TryLoad(name, out var library)) return library;
        }

        return null;
    }

    private static string Missing()
    {
        var others = Folders().Where(Directory.Exists).SelectMany(static folder => Directory.EnumerateFiles(folder, "libxenctrl.so.*")).Select(Path.GetFileName).Distinct(StringComparer.Ordinal).ToArray();
        return others.Length == 0
            ? $"There is no {string.Join(" or ", Known)}."
            : $"Of libxenctrl this library knows {string.Join(", ", Known)}, not {string.Join(", ", others)}, which is there: each version of Xen has other structures.";
    }

    private static IEnumerable<string> Folders() =>
        ["/usr/lib", "/usr/lib64", "/usr/local/lib", $"/usr/lib/{(RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? "aarch64" : "x86_64")}-linux-gnu"];

    private nint Function(string name) => NativeLibrary.GetExport(_library, name);

    private static SyscallException Failure(string function, string attempted) => new(function, Marshal.GetLastSystemError(), attempted);
}
