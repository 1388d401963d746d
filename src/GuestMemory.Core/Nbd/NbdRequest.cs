namespace GuestMemory.Core.Nbd;

/// <summary>A request of a client: what stands in its header.</summary>
internal readonly record struct NbdRequest(ushort Flags, ushort Type, ulong Cookie, ulong Offset, uint Length);
