namespace GuestMemory.Core.VhostUser;

/// <summary>One call that a request of a disk makes of its file.</summary>
/// <param name="Action">Which.</param>
/// <param name="Offset">The first byte of the file.</param>
/// <param name="Length">How many; to allocate.</param>
/// <param name="Flags">RWF_... to write, FALLOC_FL_... to allocate.</param>
/// <param name="Pieces">The pieces of memory (struct iovec), to read and write. They stay until the operation has ended.</param>
/// <param name="Count">How many pieces.</param>
internal readonly record struct DiskOperation(DiskAction Action, ulong Offset = 0, ulong Length = 0, int Flags = 0, nint Pieces = 0, int Count = 0);
