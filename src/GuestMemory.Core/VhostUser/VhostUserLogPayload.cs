using System.Runtime.InteropServices;

namespace GuestMemory.Core.VhostUser;

/// <summary>The payload of SET_LOG_BASE with a descriptor (VhostUserLog).</summary>
/// <param name="MmapSize">The bytes of the log.</param>
/// <param name="MmapOffset">Where in the file the log starts, in bytes.</param>
[StructLayout(LayoutKind.Sequential)]
internal readonly record struct VhostUserLogPayload(ulong MmapSize, ulong MmapOffset);
