namespace GuestMemory.Core.VhostUser;

/// <summary>What is done with a disk's file.</summary>
internal enum DiskAction
{
    Read,
    Write,
    Sync,
    Allocate,
}
