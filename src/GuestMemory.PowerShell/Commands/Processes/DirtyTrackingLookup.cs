using GuestMemory.Core;
using GuestMemory.Core.Processes;

namespace GuestMemory.PowerShell.Commands;

/// <summary>What this shell tracks, by process and address.</summary>
internal static class DirtyTrackingLookup
{
    /// <exception cref="GuestMemoryException">DirtyTrackingOff: nothing of it is tracked.</exception>
    public static ProcessDirtyTracker[] Find(int processId, ulong? address)
    {
        ProcessDirtyTracker[] found = [.. Session.Trackings.Where(tracker => tracker.ProcessId == processId && (address is null || Covers(tracker, address.Value)))];
        return found.Length > 0
            ? found
            : throw new GuestMemoryException(GuestMemoryError.DirtyTrackingOff, address is null
                ? $"This shell does not track what process {processId} writes."
                : $"This shell does not track what process {processId} writes at {Formatting.Hex(address.Value)}.");
    }

    public static bool Covers(ProcessDirtyTracker tracker, ulong address) => address >= tracker.Address && address - tracker.Address < tracker.Size;
}
