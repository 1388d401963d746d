using System.Runtime.InteropServices;

namespace GuestMemory.Core.VhostUser;

/// <summary>The payload of GET_INFLIGHT_FD, its reply, and SET_INFLIGHT_FD (VhostUserInflight): 24 bytes, as the C compiler pads it.</summary>
/// <param name="MmapSize">The bytes of the region.</param>
/// <param name="MmapOffset">Where in the file the region starts, in bytes.</param>
/// <param name="QueueCount">The virtqueues.</param>
/// <param name="QueueSize">The most descriptors of one.</param>
[StructLayout(LayoutKind.Sequential)]
internal readonly record struct VhostUserInflightPayload(ulong MmapSize, ulong MmapOffset, ushort QueueCount, ushort QueueSize);
