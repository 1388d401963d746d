using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>struct xen_domctl_getdomaininfo</c> of Xen 4.17, as it is on x86; on aarch64 only its end is another.</summary>
[StructLayout(LayoutKind.Explicit, Size = 112)]
internal struct XenDomainInfo
{
    public const uint XEN_DOMINF_dying = 1 << 0;
    public const uint XEN_DOMINF_hvm_guest = 1 << 1;
    public const uint XEN_DOMINF_shutdown = 1 << 2;
    public const uint XEN_DOMINF_paused = 1 << 3;
    public const uint XEN_DOMINF_blocked = 1 << 4;
    public const uint XEN_DOMINF_running = 1 << 5;

    [FieldOffset(0)] public ushort domain;
    [FieldOffset(4)] public uint flags;
    [FieldOffset(8)] public ulong tot_pages;
    [FieldOffset(16)] public ulong max_pages;
    [FieldOffset(64)] public uint nr_online_vcpus;
    [FieldOffset(76)] public Handle handle;

    /// <summary><c>xen_domain_handle_t</c>: a UUID, its bytes in the order in which they are written.</summary>
    [InlineArray(16)]
    internal struct Handle
    {
        private byte _first;

        public readonly Guid ToGuid() => new(this, bigEndian: true);
    }
}
