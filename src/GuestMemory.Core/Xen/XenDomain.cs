using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Xen;

/// <summary>
/// A domain of this Xen host, as it was when it was asked for. Used as memory it is all that it has: its memory is mapped when that is first
/// asked for, and stays so until the region is disposed of.
/// </summary>
public sealed class XenDomain : IGuestMemorySource
{
    private readonly Lock _lock = new();
    private GuestRegionXen? _region;

    internal XenDomain(XenDomainInfo info, string name)
    {
        Id = info.domain;
        Name = name;
        State = StateOf(info.flags);
        IsHvm = (info.flags & XenDomainInfo.XEN_DOMINF_hvm_guest) != 0;
        MemorySize = info.tot_pages * XenPage.Size;
        MaxMemorySize = info.max_pages > ulong.MaxValue / XenPage.Size ? null : info.max_pages * XenPage.Size;
        VcpuCount = (int)info.nr_online_vcpus;
        Uuid = info.handle.ToGuid();
    }

    /// <summary>The number.</summary>
    public uint Id { get; }

    /// <summary>The name in xenstore; empty where it has none, or no xenstored answers.</summary>
    public string Name { get; }

    /// <summary>What it does.</summary>
    public XenDomainState State { get; }

    /// <summary>Whether its guest physical addresses are translated by the hypervisor (HVM and PVH); the frames of any other (PV) are machine frames.</summary>
    public bool IsHvm { get; }

    /// <summary>The memory that it has, in bytes.</summary>
    public ulong MemorySize { get; }

    /// <summary>The memory that it may have, in bytes; null where nothing limits it.</summary>
    public ulong? MaxMemorySize { get; }

    /// <summary>Its vCPUs that are online.</summary>
    public int VcpuCount { get; }

    /// <summary>Its UUID.</summary>
    public Guid Uuid { get; }

    /// <summary>All domains of this host, by number. Domain 0 has the right to ask.</summary>
    /// <exception cref="GuestMemoryException">XenUnsupported: the host is not a Xen domain, or has no libxenctrl of a known version. XenDenied. What the hypervisor refused.</exception>
    public static IReadOnlyList<XenDomain> GetAll()
    {
        // It says more about what is missing than the library.
        XenDevice.OpenPrivcmd().Dispose();
        using var control = XenControl.Open();
        using var store = XenStore.TryOpen();
        var domains = new List<XenDomain>();
        for (uint next = 0; control.TryGetDomain(next, out var info); next = info.domain + 1u) domains.Add(new XenDomain(info, store?.NameOf(info.domain) ?? ""));
        return domains;
    }

    /// <summary>
    /// Maps all memory that the domain has, as one region from address 0 on. Where the domain has no memory the region reads as zeros, and a write
    /// is an error (PageNotAccessible).
    /// </summary>
    /// <exception cref="GuestMemoryException">ValueNotSupported: a PV domain, or the one of this host. NoMemoryRegion. What <see cref="GetAll"/> and <see cref="XenMmapRegion.FromRange(MmapRange, CancellationToken)"/> throw.</exception>
    public IReadOnlyList<GuestMemoryRegion> GetRegions()
    {
        lock (_lock)
        {
            if (_region is { IsDisposed: false }) return [_region];
            if (!IsHvm)
            {
                throw new GuestMemoryException(GuestMemoryError.ValueNotSupported,
                    $"{this} is a PV domain: its frames are those of the machine, in no order, and only HVM and PVH domains are mapped as a whole. Map frames whose numbers are known one by one.");
            }

            using var device = XenDevice.OpenPrivcmd();
            ulong last;
            using (var control = XenControl.Open()) last = control.GetLastFrame(Id);
            return [_region = XenDomainMemory.Map(XenCalls.Kernel, device, Id, last + 1, ToString())];
        }
    }

    /// <summary>The name and the number.</summary>
    public override string ToString() => Name.Length == 0 ? $"domain {Id}" : $"{Name} (domain {Id})";

    private static XenDomainState StateOf(uint flags) => flags switch
    {
        _ when (flags & XenDomainInfo.XEN_DOMINF_dying) != 0 => XenDomainState.Dying,
        _ when (flags & XenDomainInfo.XEN_DOMINF_shutdown) != 0 => XenDomainState.Shutdown,
        _ when (flags & XenDomainInfo.XEN_DOMINF_paused) != 0 => XenDomainState.Paused,
        _ when (flags & XenDomainInfo.XEN_DOMINF_running) != 0 => XenDomainState.Running,
        _ when (flags & XenDomainInfo.XEN_DOMINF_blocked) != 0 => XenDomainState.Blocked,
        _ => XenDomainState.Idle,
    };
}
