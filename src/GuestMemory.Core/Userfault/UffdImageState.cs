namespace GuestMemory.Core.Userfault;

/// <summary>What a handler does with one of its images.</summary>
public enum UffdImageState
{
    /// <summary>VMs can connect, and get its pages.</summary>
    Serving,
    /// <summary>No VM can connect any more, and those that are served are being given up; then it is gone.</summary>
    Removing,
    /// <summary>Its file has changed. No VM can connect, and pages that have not come of the VMs that are served cannot be read.</summary>
    Failed,
}
