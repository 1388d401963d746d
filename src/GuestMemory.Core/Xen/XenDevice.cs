using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Xen;

/// <summary>The devices by which a Xen domain maps the memory of others.</summary>
public static class XenDevice
{
    /// <summary>The device that maps frames of other domains.</summary>
    public const string PrivcmdPath = "/dev/xen/privcmd";

    /// <summary>The device that maps pages that other domains grant.</summary>
    public const string GntdevPath = "/dev/xen/gntdev";

    // Where xenfs had it before it was a device.
    private const string FormerPrivcmdPath = "/proc/xen/privcmd";
    private const string HypervisorPath = "/sys/hypervisor/type";

    /// <summary>Opens privcmd, for FOREIGN mappings.</summary>
    /// <exception cref="SyscallException">XenUnsupported: the host is not a Xen domain, or its kernel has no such device. XenDenied.</exception>
    public static SafeFileHandle OpenPrivcmd() => Open(!File.Exists(PrivcmdPath) && File.Exists(FormerPrivcmdPath) ? FormerPrivcmdPath : PrivcmdPath);

    /// <summary>Opens gntdev, for GRANT mappings.</summary>
    /// <exception cref="SyscallException">As <see cref="OpenPrivcmd"/>.</exception>
    public static SafeFileHandle OpenGntdev() => Open(GntdevPath);

    /// <summary>Whether this host is a domain of a Xen hypervisor.</summary>
    internal static bool IsDomain() => Directory.Exists("/proc/xen") || Directory.Exists("/dev/xen") || HypervisorType() == "xen";

    /// <summary>What keeps a device from being used, with the remedy.</summary>
    /// <param name="path">The device.</param>
    /// <param name="error">The error number of opening it.</param>
    internal static (string Detail, string? Remedy) WhyNot(string path, int error)
    {
        if (error is Errno.EACCES or Errno.EPERM) return ($"{path} exists, but this user may not open it.", $"Run as root, or 'setfacl -m u:USER:rw {path}'.");
        if (!IsDomain())
            return ($"This host is not a Xen domain: there is no /proc/xen and no /dev/xen, and {HypervisorPath} {(HypervisorType() is { } type ? $"says '{type}'" : "does not exist")}.", "Foreign and grant mappings need a kernel that runs under Xen, foreign ones domain 0.");
        return error is Errno.ENOENT or Errno.ENXIO or Errno.ENODEV
            ? ($"{path} does not exist.", $"Load the module: 'modprobe xen-{Path.GetFileName(path)}'.")
            : ($"{path} cannot be opened ({Errno.Name(error)}).", null);
    }

    private static SafeFileHandle Open(string path)
    {
        if (XenApi.TryOpen(path, out var error) is { } device) return device;
        var (detail, remedy) = WhyNot(path, error);
        throw new SyscallException("open", error, $"Opening {path}", error is Errno.EACCES or Errno.EPERM ? GuestMemoryError.XenDenied : GuestMemoryError.XenUnsupported, remedy is null ? detail : $"{detail} {remedy}");
    }

    private static string? HypervisorType()
    {
        try
        {
            return File.ReadAllText(HypervisorPath).Trim();
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }
}
