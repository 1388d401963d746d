using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <summary>The sizes of payloads and the numbers of descriptors, request by request, and what a request is answered with.</summary>
internal static class VhostUserLayout
{
    /// <summary>In the number of SET_VRING_KICK, CALL and ERR: no descriptor comes along.</summary>
    public const ulong NoDescriptor = 0x100;

    /// <summary>What stands before the region in ADD_MEM_REG and REM_MEM_REG, and before the regions in SET_MEM_TABLE.</summary>
    public const int RegionOffset = sizeof(ulong);

    private const ulong VringMask = 0xff;

    /// <summary>
    /// Checks size and descriptors of a request that this back end knows. A request that it does not offer is not checked: it is
    /// refused whatever it holds.
    /// </summary>
    /// <exception cref="GuestMemoryException">InvalidMessage; IncorrectFds.</exception>
    public static void Check(VhostUserMessage message)
    {
        switch (message.Request)
        {
            case VhostUserRequest.GetFeatures or VhostUserRequest.SetOwner or VhostUserRequest.ResetOwner or VhostUserRequest.GetProtocolFeatures or VhostUserRequest.GetQueueNum or VhostUserRequest.GetMaxMemSlots
                or VhostUserRequest.PostcopyAdvise or VhostUserRequest.PostcopyListen or VhostUserRequest.PostcopyEnd:
                Require(message, 0, 0);
                break;
            case VhostUserRequest.SetFeatures or VhostUserRequest.SetProtocolFeatures:
                Require(message, sizeof(ulong), 0);
                break;
            case VhostUserRequest.SetMemTable:
                CheckTable(message);
                break;
            case VhostUserRequest.SetLogBase:
                CheckLog(message);
                break;
            case VhostUserRequest.SetLogFd:
                Require(message, 0, 1);
                break;
            case VhostUserRequest.SetVringNum or VhostUserRequest.SetVringBase or VhostUserRequest.GetVringBase or VhostUserRequest.SetVringEnable:
                Require(message, Unsafe.SizeOf<VhostVringState>(), 0);
                break;
            case VhostUserRequest.SetVringAddr:
                Require(message, Unsafe.SizeOf<VhostVringAddr>(), 0);
                break;
            case VhostUserRequest.SetVringKick or VhostUserRequest.SetVringCall or VhostUserRequest.SetVringErr:
                CheckVringDescriptor(message);
                break;
            case VhostUserRequest.GetConfig:
                RequireAtLeast(message, VhostUserConfigPayload.Length);
                Require(message, VhostUserConfigPayload.Length + (long)message.Body<VhostUserConfigPayload>().Size, 0);
                break;
            case VhostUserRequest.GetInflightFd:
                Require(message, Unsafe.SizeOf<VhostUserInflightPayload>(), 0);
                break;
            case VhostUserRequest.SetInflightFd:
                Require(message, Unsafe.SizeOf<VhostUserInflightPayload>(), 1);
                break;
            case VhostUserRequest.AddMemReg:
                Require(message, RegionOffset + Unsafe.SizeOf<VhostMemoryRegion>(), 1);
                break;
            case VhostUserRequest.RemMemReg:
                // Earlier front ends send the descriptor again.
                Require(message, RegionOffset + Unsafe.SizeOf<VhostMemoryRegion>(), Math.Min(message.Descriptors.Count, 1));
                break;
        }
    }

    /// <summary>
    /// Whether a message says that the front end serves the pages of the memory that it shared in a post-copy migration. It has the number of the
    /// request that shared it, or none: QEMU sends it also where nothing has changed.
    /// </summary>
    public static bool IsServedAck(VhostUserMessage message) => message.Header.Size == sizeof(ulong) && message.Descriptors.Count == 0
        && message.Request is VhostUserRequest.None or VhostUserRequest.SetMemTable or VhostUserRequest.AddMemReg or VhostUserRequest.RemMemReg;

    /// <summary>The payload of SET_MEM_TABLE or ADD_MEM_REG with other addresses in place of the front end's.</summary>
    /// <param name="message">The request.</param>
    /// <param name="addresses">Where the regions are, in the order in which they came.</param>
    public static byte[] WithAddresses(VhostUserMessage message, IEnumerable<ulong> addresses)
    {
        var payload = message.Payload.ToArray();
        var regions = MemoryMarshal.Cast<byte, VhostMemoryRegion>(payload.AsSpan(RegionOffset));
        foreach (var (index, address) in addresses.Index()) regions[index].userspace_addr = address;
        return payload;
    }

    /// <summary>The regions of SET_MEM_TABLE, ADD_MEM_REG or REM_MEM_REG.</summary>
    public static ReadOnlySpan<VhostMemoryRegion> Regions(VhostUserMessage message) => MemoryMarshal.Cast<byte, VhostMemoryRegion>(message.Payload[RegionOffset..]);

    /// <summary>The ring that SET_VRING_KICK, CALL or ERR is about.</summary>
    public static uint Vring(VhostUserMessage message) => (uint)(message.Body<ulong>() & VringMask);

    /// <summary>Whether a request is answered in a way of its own, whether or not the front end asks for a reply.</summary>
    public static bool HasOwnReply(VhostUserMessage message) => message.Request switch
    {
        VhostUserRequest.SetLogBase => message.Header.Size == Unsafe.SizeOf<VhostUserLogPayload>(),
        VhostUserRequest.GetFeatures or VhostUserRequest.GetProtocolFeatures or VhostUserRequest.GetQueueNum or VhostUserRequest.GetVringBase
            or VhostUserRequest.GetConfig or VhostUserRequest.GetMaxMemSlots or VhostUserRequest.GetInflightFd or VhostUserRequest.GetStatus
            or VhostUserRequest.GetSharedObject or VhostUserRequest.GetShmemConfig or VhostUserRequest.CreateCryptoSession
            or VhostUserRequest.PostcopyAdvise or VhostUserRequest.PostcopyEnd or VhostUserRequest.SetDeviceStateFd or VhostUserRequest.CheckDeviceState => true,
        _ => false,
    };

    private static void CheckTable(VhostUserMessage message)
    {
        RequireAtLeast(message, RegionOffset);
        var count = message.Body<uint>();
        if (count is 0 or > VhostUserMessage.MaxDescriptors)
            throw new GuestMemoryException(GuestMemoryError.InvalidMessage, $"The message {message.Request} has {count} regions; 1 to {VhostUserMessage.MaxDescriptors} are expected.");
        Require(message, RegionOffset + count * Unsafe.SizeOf<VhostMemoryRegion>(), (int)count);
    }

    private static void CheckLog(VhostUserMessage message)
    {
        if (message.Header.Size == sizeof(ulong))
        {
            Require(message, sizeof(ulong), 0);
            return;
        }

        Require(message, Unsafe.SizeOf<VhostUserLogPayload>(), 1);
        var (size, offset) = message.Body<VhostUserLogPayload>();
        if (size == 0 || offset > ulong.MaxValue - size)
            throw new GuestMemoryException(GuestMemoryError.InvalidMessage, $"The message {message.Request} has a log of 0x{size:x} bytes at offset 0x{offset:x}, which no file holds.");
    }

    private static void CheckVringDescriptor(VhostUserMessage message)
    {
        RequireAtLeast(message, sizeof(ulong));
        var value = message.Body<ulong>();
        if ((value & ~(VringMask | NoDescriptor)) != 0)
            throw new GuestMemoryException(GuestMemoryError.InvalidMessage, $"The message {message.Request} has the number 0x{value:x}; it holds a ring (8 bits) and the flag 0x{NoDescriptor:x}.");
        Require(message, sizeof(ulong), (value & NoDescriptor) != 0 ? 0 : 1);
    }

    private static void RequireAtLeast(VhostUserMessage message, int size)
    {
        if (message.Header.Size < size)
            throw new GuestMemoryException(GuestMemoryError.InvalidMessage, $"The message {message.Request} has a payload of {message.Header.Size} bytes; at least {size} are expected.");
    }

    private static void Require(VhostUserMessage message, long size, int descriptors)
    {
        if (message.Header.Size != size)
            throw new GuestMemoryException(GuestMemoryError.InvalidMessage, $"The message {message.Request} has a payload of {message.Header.Size} bytes; {size} are expected.");
        if (message.Descriptors.Count != descriptors)
            throw new GuestMemoryException(GuestMemoryError.IncorrectFds, $"The message {message.Request} came with {message.Descriptors.Count} descriptors; {descriptors} are expected.");
    }
}
