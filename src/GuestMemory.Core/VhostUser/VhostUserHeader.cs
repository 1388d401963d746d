using System.Runtime.InteropServices;

namespace GuestMemory.Core.VhostUser;

/// <summary>The header of a message: 12 bytes in the byte order of the machine.</summary>
/// <param name="Request">The request, also in its reply.</param>
/// <param name="Flags">The version, <see cref="Reply"/>, <see cref="NeedReply"/>.</param>
/// <param name="Size">The bytes of the payload.</param>
[StructLayout(LayoutKind.Sequential)]
internal readonly record struct VhostUserHeader(VhostUserRequest Request, uint Flags, uint Size)
{
    public const int Length = 12;
    public const uint Version = 1;
    public const uint Reply = 4;
    public const uint NeedReply = 8;
    public const int MaxPayload = 0x1000;

    private const uint VersionMask = 3;

    /// <summary>Checks the header of a message of a front end.</summary>
    /// <exception cref="GuestMemoryException">InvalidMessage; PacketTooLarge.</exception>
    public void CheckRequest()
    {
        if ((Flags & VersionMask) != Version)
            throw new GuestMemoryException(GuestMemoryError.InvalidMessage, $"The message {Request} has version {Flags & VersionMask} of the protocol; version {Version} is expected.");
        if ((Flags & ~(VersionMask | NeedReply)) != 0)
            throw new GuestMemoryException(GuestMemoryError.InvalidMessage, $"The message {Request} has the flags 0x{Flags:x}; a request has the version and NEED_REPLY alone.");
        if (Size > MaxPayload)
            throw new GuestMemoryException(GuestMemoryError.PacketTooLarge, $"The message {Request} has a payload of {Size} bytes; at most {MaxPayload} are read.");
    }
}
