using System.Runtime.InteropServices;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// What a VM's serving counts. The thread that answers faults writes the first part, the one that fills ahead the second; anybody
/// may read. It lies in the VM's state, and so outlives the process that counts. Times are timestamps.
/// </summary>
[StructLayout(LayoutKind.Sequential)]
internal struct UffdCounters
{
    /// <summary><see cref="FillDone"/>: nothing is left to fill.</summary>
    public const long FillComplete = 1;

    /// <summary><see cref="FillDone"/>: the fills of the handler have reached the limit of its memory.</summary>
    public const long FillLimited = 2;

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
    public long FirstPageAt;

    public long FillBytes;
    public long FillZeroBytes;
    public long FillErrors;
    /// <summary>0 while pages are filled ahead.</summary>
    public long FillDone;

    /// <summary>The faults that were answered.</summary>
    public readonly long Faults => Copied + Zero + Present + Continued + WriteProtected + Poisoned + Failed;

    /// <summary>The bytes that came out of the source.</summary>
    public readonly long Bytes => FaultBytes + WindowBytes + FillBytes;

    /// <summary>Adds what another VM counted; times and what is only true of one VM stay.</summary>
    public void Add(ref UffdCounters other)
    {
        Copied += other.Copied;
        Zero += other.Zero;
        Present += other.Present;
        Continued += other.Continued;
        WriteProtected += other.WriteProtected;
        Deferred += other.Deferred;
        Poisoned += other.Poisoned;
        Failed += other.Failed;
        Removes += other.Removes;
        SourceErrors += other.SourceErrors;
        QueueDepth += other.QueueDepth;
        FaultBytes += other.FaultBytes;
        WindowBytes += other.WindowBytes;
        FillBytes += other.FillBytes;
        FillZeroBytes += other.FillZeroBytes;
        FillErrors += other.FillErrors;
    }
}
