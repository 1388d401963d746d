using System.Management.Automation;
using GuestMemory.Core.Processes;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Stop-DirtyTracking: no longer tracks the memory of other processes.</summary>
[Cmdlet(VerbsLifecycle.Stop, "DirtyTracking", SupportsShouldProcess = true, DefaultParameterSetName = "Tracking")]
[OutputType(typeof(void))]
public sealed class StopDirtyTrackingCommand : GuestMemoryCmdlet
{
    /// <summary>What Start-DirtyTracking or Get-DirtyTracking gave.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ParameterSetName = "Tracking")]
    [ArgumentCompleter(typeof(PositionCompleter<TrackedProcessIdCompleter>))]
    [ValidateNotNull]
    public ProcessDirtyTracker[] Tracking { get; set; } = [];

    /// <summary>Processes.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = "Process")]
    [ArgumentCompleter(typeof(TrackedProcessIdCompleter))]
    public int[] ProcessId { get; set; } = [];

    /// <summary>An address in the range; unless given, all ranges of the process.</summary>
    [Parameter(Position = 1, ParameterSetName = "Process")]
    [ArgumentCompleter(typeof(TrackedAddressCompleter))]
    [Number]
    public ulong Address { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        ulong? address = MyInvocation.BoundParameters.ContainsKey(nameof(Address)) ? Address : null;
        foreach (var tracker in Tracking) Stop(tracker);
        foreach (var process in ProcessId)
        {
            Attempt(() =>
            {
                foreach (var tracker in DirtyTrackingLookup.Find(process, address)) Stop(tracker);
            }, process);
        }
    }

    private void Stop(ProcessDirtyTracker tracker)
    {
        if (!ShouldProcess(tracker.ToString(), "Stop tracking what the process writes")) return;
        Session.Remove(tracker);
        tracker.Dispose();
    }
}
