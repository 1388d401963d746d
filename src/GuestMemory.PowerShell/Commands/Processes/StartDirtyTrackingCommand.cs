using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Processes;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Start-DirtyTracking: tracks what a running process writes.</summary>
[Cmdlet(VerbsLifecycle.Start, "DirtyTracking", SupportsShouldProcess = true)]
[OutputType(typeof(ProcessDirtyTracker))]
public sealed class StartDirtyTrackingCommand : GuestMemoryCmdlet
{
    private const int Listed = 5;

    /// <summary>The process.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipelineByPropertyName = true)]
    [Alias("Id")]
    [ArgumentCompleter(typeof(ProcessIdCompleter))]
    public int ProcessId { get; set; }

    /// <summary>The first address of the range, in the process.</summary>
    [Parameter(Position = 1, ValueFromPipelineByPropertyName = true)]
    [Number]
    public ulong Address { get; set; }

    /// <summary>The length of the range in bytes; unless given, up to the end of the mapping.</summary>
    [Parameter(Position = 2, ValueFromPipelineByPropertyName = true)]
    [Alias("Length", "Count")]
    [Number]
    public ulong Size { get; set; }

    /// <summary>What tells the writes.</summary>
    [Parameter]
    public ProcessTrackingSource Source { get; set; }

    private string Action => Source switch
    {
        ProcessTrackingSource.Compare => "Read the memory, and compare it at each query",
        ProcessTrackingSource.SoftDirty => "Reset the soft-dirty marks of all memory of the process, now and by -Clear",
        ProcessTrackingSource.Mincore => "Note which pages are there",
        _ => "Stop a thread for a moment, and track what the process writes",
    };

    /// <inheritdoc/>
    protected override void ProcessRecord() => Attempt(Start, ProcessId);

    private void Start()
    {
        if (!MyInvocation.BoundParameters.ContainsKey(nameof(Address))) throw WhichMemory();
        var size = MyInvocation.BoundParameters.ContainsKey(nameof(Size)) ? Size : ProcessDirtyTracker.SizeToEnd(ProcessId, Address);
        if (!ShouldProcess($"process {ProcessId}, {Formatting.Size(size)} at {Formatting.Hex(Address)}", Action)) return;
        var progress = new ProgressBar(this, $"Reading memory of process {ProcessId}", size);
        var tracker = ProcessDirtyTracker.Start(ProcessId, Address, size, Source, progress.Report, StopToken);
        Session.Add(tracker);
        progress.Complete();
        if (tracker.Reason is { } reason) WriteWarning($"What process {ProcessId} writes is tracked by -Source {tracker.Source}, which is not exact. {reason}");
        WriteObject(tracker);
    }

    /// <summary>All of a process's memory would be its libraries and stacks, too.</summary>
    private GuestMemoryException WhichMemory()
    {
        var largest = ProcessMapping.GetAll(ProcessId).Where(static mapping => mapping.IsWritable).OrderByDescending(static mapping => mapping.Size).Take(Listed)
            .Select(static mapping => $"{Formatting.Hex(mapping.Address)}, {Formatting.Size(mapping.Size)}{(mapping.Path.Length > 0 ? $" ({mapping.Path})" : "")}");
        return new GuestMemoryException(GuestMemoryError.ValueNotSupported,
            $"Which memory of process {ProcessId} is to be tracked is not given (-Address, -Size). Its largest writable mappings are: {string.Join("; ", largest)}. '/proc/{ProcessId}/maps' has all.");
    }
}
