using System.Runtime.InteropServices;

namespace GuestMemory.Core;

/// <summary>
/// What a VM's serving counts. The thread that answers faults writes the first part, the one that fills ahead the second; anybody
/// may read. It lies in the VM's state, and so outlives the process that counts.
/// </summary>
[StructLayout(LayoutKind.Sequential)]
internal struct UffdCounters
{
    public long Copied;
    public long Zero;
    public long Present;
    public long Continued;
    public long WriteProtected;
    public long Deferred;
    public long Poisoned;
    public long Failed;
    public long Removes;
    public long SourceErrors;
    public long QueueDepth;
    public long FaultBytes;
    public long WindowBytes;
    public long StartedAt;
    public long FirstFaultAt;
    public long FirstPageAt;

    public long FillBytes;
    public long FillZeroBytes;
    public long FillErrors;
    public long FillDone;
}
