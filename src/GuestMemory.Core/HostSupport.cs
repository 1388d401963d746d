using GuestMemory.Core.Interop;
using GuestMemory.Core.VmControl;
using GuestMemory.Core.Xen;

namespace GuestMemory.Core;

/// <summary>Whether this host has a feature, why not, and what helps.</summary>
/// <param name="Feature">A stable name.</param>
/// <param name="Supported">Whether this user can use it here and now.</param>
/// <param name="Detail">What was found.</param>
/// <param name="Remedy">What helps, or null where nothing is missing or nothing can be done.</param>
public sealed record HostFeature(string Feature, bool Supported, string Detail, string? Remedy);

/// <summary>Finds out what this host can do, by trying it where that leaves no trace.</summary>
public static class HostSupport
{
    private static readonly (string Name, uint Capability, string Use)[] s_kvmExtensions =
    [
        ("MemorySlots", KvmApi.KVM_CAP_NR_MEMSLOTS, "Memory slots of a VM"),
        ("ReadOnlyMemory", KvmApi.KVM_CAP_READONLY_MEM, "Memory that the guest cannot write (KVM_CAP_READONLY_MEM)"),
        ("IoEventFd", KvmApi.KVM_CAP_IOEVENTFD, "Eventfds that a guest's stores signal (KVM_CAP_IOEVENTFD)"),
        ("ManualDirtyLogProtect", KvmApi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "A dirty log that is cleared page by page (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)"),
        ("DirtyRing", KvmApi.KVM_CAP_DIRTY_LOG_RING_ACQ_REL, "The bytes of a vCPU's dirty ring, at most (KVM_CAP_DIRTY_LOG_RING_ACQ_REL)"),
    ];

    /// <summary>One row a feature.</summary>
    public static IEnumerable<HostFeature> Probe()
    {
        foreach (var feature in ProbeUserfaultfd()) yield return feature;
        foreach (var feature in ProbeHugePages()) yield return feature;
        foreach (var feature in ProbeKvm()) yield return feature;
        yield return ProbePreparing();
        foreach (var feature in ProbeXen()) yield return feature;
        yield return ProbePagemapScan();
    }

    private static IEnumerable<HostFeature> ProbeUserfaultfd()
    {
        var error = Userfaultfd.TryProbe(out var features);
        yield return error switch
        {
            0 => new HostFeature("Userfaultfd", true, "Page faults of this user's processes and of the kernel on their behalf (KVM) can be served.", null),
            Errno.ENOSYS => new HostFeature("Userfaultfd", false, "The kernel is built without CONFIG_USERFAULTFD.", "Use a kernel that has it; every distribution's has."),
            _ => new HostFeature("Userfaultfd", false, $"This user may not create a userfaultfd ({Errno.Name(error)}).",
                $"Give this user access to {Userfaultfd.DevicePath} ('setfacl -m u:USER:rw {Userfaultfd.DevicePath}'), run as root, or 'sysctl vm.unprivileged_userfaultfd=1'."),
        };
        yield return !File.Exists(Userfaultfd.DevicePath)
            ? new HostFeature("DevUserfaultfd", false, $"{Userfaultfd.DevicePath} does not exist: Linux before 6.1. The system call is used instead.", null)
            : FileStatus.CanReadWrite(Userfaultfd.DevicePath)
                ? new HostFeature("DevUserfaultfd", true, $"{Userfaultfd.DevicePath} can be opened.", null)
                : new HostFeature("DevUserfaultfd", false, $"{Userfaultfd.DevicePath} exists, but this user may not open it.", $"'setfacl -m u:USER:rw {Userfaultfd.DevicePath}', for the VMM's user as well.");
        for (var bit = 0; bit < Userfaultfd.FeatureNames.Length; bit++)
        {
            var supported = (features >> bit & 1) != 0;
            yield return new HostFeature($"Uffd:{Userfaultfd.FeatureNames[bit]}", supported, $"UFFD_FEATURE_{Userfaultfd.FeatureNames[bit]} (bit {bit})",
                supported || error != 0 ? null : "A newer kernel, or one with the configuration option for it.");
        }
    }

    private static IEnumerable<HostFeature> ProbeHugePages()
    {
        var pools = HugePages.Pools();
        if (pools.Count == 0) yield return new HostFeature("HugePages", false, "The kernel has no huge pages (CONFIG_HUGETLBFS).", null);
        foreach (var pool in pools)
        {
            yield return new HostFeature($"HugePages:{pool.PageSize / 1024}kB", pool.Free > 0, $"{pool.Free} of {pool.Total} pages are free.",
                pool.Free > 0 ? null : $"'{HugePages.EnlargeCommand(pool.PageSize)}' as root.");
        }
    }

    private static IEnumerable<HostFeature> ProbeKvm()
    {
        var error = KvmApi.TryOpen(out var device);
        using var opened = device;
        yield return error switch
        {
            0 => new HostFeature("Kvm", true, $"{KvmApi.DevicePath} can be opened.", null),
            Errno.EACCES or Errno.EPERM => new HostFeature("Kvm", false, $"{KvmApi.DevicePath} exists, but this user may not open it.", KvmApi.WhenDenied),
            Errno.ENOENT => new HostFeature("Kvm", false, $"{KvmApi.DevicePath} does not exist.", KvmApi.WhenMissing),
            _ => new HostFeature("Kvm", false, $"{KvmApi.DevicePath} cannot be opened ({Errno.Name(error)}).", KvmApi.WhenMissing),
        };
        foreach (var (name, capability, use) in s_kvmExtensions)
        {
            var answer = device is null ? 0 : KvmApi.Extension(device, capability);
            yield return new HostFeature($"Kvm:{name}", answer > 0, answer > 1 ? $"{use}: {answer}." : $"{use}.", answer > 0 || device is null ? null : "A newer kernel.");
        }
    }

    private static HostFeature ProbePreparing() => VmMemoryContext.HostPrepares.Value
        ? new HostFeature("Kvm:PreparedMemory", true, "PrepareSharedMemoryRegion reserves a slot (KVM's tdp_mmu).", null)
        : new HostFeature("Kvm:PreparedMemory", false, "PrepareSharedMemoryRegion succeeds without doing anything; what is registered gets slots of its own (KVM's tdp_mmu is off).",
            "Nothing is missing; to have it, load kvm with tdp_mmu=1.");

    private static IEnumerable<HostFeature> ProbeXen()
    {
        var isDomain = XenDevice.IsDomain();
        if (isDomain)
        {
            yield return new HostFeature("Xen", true, "This host is a domain of a Xen hypervisor.", null);
        }
        else
        {
            var (detail, remedy) = XenDevice.WhyNot(XenDevice.PrivcmdPath, Errno.ENOENT);
            yield return new HostFeature("Xen", false, detail, remedy);
        }

        foreach (var (name, path, use) in ((string, string, string)[])[("Privcmd", XenDevice.PrivcmdPath, "Frames of other domains can be mapped"), ("Gntdev", XenDevice.GntdevPath, "Pages that other domains grant can be mapped")])
        {
            using var device = XenApi.TryOpen(path, out var error);
            var (detail, remedy) = device is null ? XenDevice.WhyNot(path, error) : ($"{use}: {path} can be opened.", null);
            yield return new HostFeature($"Xen:{name}", device is not null, detail, remedy);
        }

        var missing = XenControl.FindMissing();
        yield return new HostFeature("Xen:Control", isDomain && missing is null, missing ?? $"Domains can be listed: {string.Join(", ", XenControl.Known)}.", isDomain && missing is null ? null : XenControl.Remedy);
    }

    private static HostFeature ProbePagemapScan()
    {
        var error = Pagemap.TryProbe();
        return error == 0
            ? new HostFeature("PagemapScan", true, "PAGEMAP_SCAN: the written pages of a process can be listed at once.", null)
            : new HostFeature("PagemapScan", false, $"The kernel has no PAGEMAP_SCAN ({Errno.Name(error)}).", "Linux 6.7 or later.");
    }
}
