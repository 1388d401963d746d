using System.Runtime.InteropServices;

namespace GuestMemory.Core.VmControl;

/// <summary>A part of a file that is mapped over a part of shared memory, for the guest to read (crosvm's <c>VmMemoryFileMapping</c>).</summary>
/// <param name="File">The file.</param>
/// <param name="Length">The bytes.</param>
/// <param name="MemOffset">Where in the shared memory, in bytes; a multiple of the page size.</param>
/// <param name="FileOffset">Where in the file, in bytes; a multiple of the page size.</param>
public sealed record VmMemoryFileMapping(SafeHandle File, ulong Length, ulong MemOffset, ulong FileOffset);
