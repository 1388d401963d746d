namespace GuestMemory.Core.VhostUser;

/// <summary>Where a virtqueue lies in guest memory, and where writes to its used ring are logged.</summary>
internal readonly record struct VhostUserVringAddresses(GuestAddress DescriptorTable, GuestAddress AvailableRing, GuestAddress UsedRing, GuestAddress? UsedRingLog);
