using System.Management.Automation;
using GuestMemory.Core.Processes;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-DirtyTracking: the memory of other processes that this shell tracks.</summary>
[Cmdlet(VerbsCommon.Get, "DirtyTracking")]
[OutputType(typeof(ProcessDirtyTracker))]
public sealed class GetDirtyTrackingCommand : GuestMemoryCmdlet
{
    /// <summary>Processes; unless given, all.</summary>
    [Parameter(Position = 0, ValueFromPipelineByPropertyName = true)]
    [Alias("Id")]
    [ArgumentCompleter(typeof(TrackedProcessIdCompleter))]
    public int[] ProcessId { get; set; } = [];

    /// <summary>An address in the range.</summary>
    [Parameter(Position = 1)]
    [ArgumentCompleter(typeof(TrackedAddressCompleter))]
    [Number]
    public ulong Address { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        ulong? address = MyInvocation.BoundParameters.ContainsKey(nameof(Address)) ? Address : null;
        if (ProcessId.Length == 0) WriteObject(Session.Trackings.Where(tracker => address is null || DirtyTrackingLookup.Covers(tracker, address.Value)), enumerateCollection: true);
        foreach (var process in ProcessId) Attempt(() => WriteObject(DirtyTrackingLookup.Find(process, address), enumerateCollection: true), process);
    }
}
