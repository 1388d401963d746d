using System.Runtime.InteropServices;

namespace GuestMemory.Core.VhostUser;

/// <summary>The start of the payload of GET_CONFIG and SET_CONFIG (VhostUserConfig); the bytes of the configuration follow.</summary>
/// <param name="Offset">Where in the device's configuration the bytes start.</param>
/// <param name="Size">How many there are.</param>
/// <param name="Flags">0, or 1 for a change during a migration.</param>
[StructLayout(LayoutKind.Sequential)]
internal readonly record struct VhostUserConfigPayload(uint Offset, uint Size, uint Flags)
{
    public const int Length = 12;
}
