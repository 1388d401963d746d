using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <summary>What the front end has said about a virtqueue.</summary>
/// <param name="Size">The number of descriptors; 0 until SET_VRING_NUM.</param>
/// <param name="Address">The addresses of the front end; null until SET_VRING_ADDR.</param>
/// <param name="NextAvailable">The index of the next available entry.</param>
/// <param name="Enabled">Whether it may run; see SET_VRING_ENABLE.</param>
/// <param name="Kick">The descriptor that starts it; null until SET_VRING_KICK, and after GET_VRING_BASE.</param>
/// <param name="Call">The descriptor that tells the guest of used entries, or null.</param>
/// <param name="Error">The descriptor that tells the front end of errors, or null.</param>
internal readonly record struct VhostUserVringState(ushort Size, VhostVringAddr? Address, ushort NextAvailable, bool Enabled, SafeDescriptor? Kick, SafeDescriptor? Call, SafeDescriptor? Error)
{
    private const ulong DescriptorBytes = 16;
    private const ulong UsedElementBytes = 8;

    // Flags, index, and the event index behind the entries, of 2 bytes each.
    private const ulong RingOverhead = 6;

    /// <summary>Whether all is known that serving it takes.</summary>
    public bool CanRun => Enabled && Kick is not null && Size != 0 && Address is not null;

    /// <summary>The bytes of the used ring of so many descriptors.</summary>
    public static ulong UsedRingBytes(int size) => RingOverhead + UsedElementBytes * (ulong)size;

    /// <summary>Where it lies in a memory.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress: a ring lies outside the memory.</exception>
    public VhostUserVringAddresses Translate(VhostUserMemory memory)
    {
        var address = Address!.Value;
        return new VhostUserVringAddresses(
            memory.Translate(address.desc_user_addr, DescriptorBytes * Size, "descriptor table"),
            memory.Translate(address.avail_user_addr, RingOverhead + sizeof(ushort) * (ulong)Size, "available ring"),
            memory.Translate(address.used_user_addr, UsedRingBytes(Size), "used ring"),
            (address.flags >> Vhost.VHOST_VRING_F_LOG & 1) != 0 ? address.log_guest_addr : null);
    }
}
