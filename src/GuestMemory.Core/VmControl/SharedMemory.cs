using System.Runtime.InteropServices;

namespace GuestMemory.Core;

/// <summary>A file that is memory, a memfd for example (crosvm's <c>SharedMemory</c>).</summary>
/// <param name="Descriptor">The file.</param>
/// <param name="Size">Its length in bytes.</param>
public sealed record SharedMemory(SafeHandle Descriptor, ulong Size);
