namespace GuestMemory.Core.VhostUser;

/// <summary>Something that the thread of a virtqueue was waiting for.</summary>
/// <param name="Kind">What.</param>
/// <param name="Place">The operation that has ended.</param>
/// <param name="Result">Its result: bytes, or 0; a negated error number.</param>
internal readonly record struct DiskEvent(DiskEventKind Kind, int Place = 0, int Result = 0);
