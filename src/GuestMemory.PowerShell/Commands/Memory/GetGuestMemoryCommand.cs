using System.Diagnostics;
using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Processes;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-GuestMemory: regions as one guest physical address space, or that of a VM which another process runs.</summary>
[Cmdlet(VerbsCommon.Get, "GuestMemory", DefaultParameterSetName = MemorySet)]
[OutputType(typeof(GuestMemoryMmap))]
public sealed class GetGuestMemoryCommand : MemoryCmdlet
{
    private const string MemorySet = "Memory";
    private const string ProcessSet = "Process";

    /// <inheritdoc/>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = MemorySet)]
    [ArgumentCompleter(typeof(RegionCompleter))]
    [Memory(Backends = true, Except = [typeof(Process)])]
    [ValidateNotNull]
    public override IGuestMemorySource[] Memory { get; set; } = [];

    /// <summary>The processes of VMMs.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipelineByPropertyName = true, ParameterSetName = ProcessSet)]
    [Alias("Id")]
    [ArgumentCompleter(typeof(VmmProcessIdCompleter))]
    public int[] ProcessId { get; set; } = [];

    /// <summary>Lets the memory be written.</summary>
    [Parameter(ParameterSetName = ProcessSet)]
    public SwitchParameter Writable { get; set; }

    /// <summary>Stops the process for the length of each read.</summary>
    [Parameter(ParameterSetName = ProcessSet)]
    public SwitchParameter Pause { get; set; }

    /// <summary>Where the memory lies in the guest, and perhaps in the process.</summary>
    [Parameter(ParameterSetName = ProcessSet)]
    [Layout]
    [ValidateNotNullOrEmpty]
    public GuestLayoutRange[] Layout { get; set; } = [];

    /// <summary>The QMP socket of a QEMU.</summary>
    [Parameter(ParameterSetName = ProcessSet)]
    [ValidateNotNullOrEmpty]
    public string? Monitor { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        if (ParameterSetName == MemorySet) base.ProcessRecord();
        else foreach (var process in ProcessId) Attempt(() => Attach(process), process);
    }

    /// <inheritdoc/>
    protected override void EndProcessing()
    {
        if (ParameterSetName == MemorySet) base.EndProcessing();
    }

    // The cmdlet that works on what is emitted holds it.
    private protected override bool HoldsProcesses => false;

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory) => WriteObject(memory);

    private void Attach(int processId)
    {
        var process = AttachedProcess.Attach(processId, new AttachOptions
        {
            IsWritable = Writable,
            Pauses = Pause,
            Layout = Layout,
            MonitorPath = Monitor is null ? null : ResolvePath(Monitor),
            Cancellation = StopToken,
            Name = Session.AttachedName,
        });
        Session.Add(process);
        WriteVerbose(process.LayoutSource);
        foreach (var warning in process.Warnings) WriteWarning(warning);
        WriteObject(process.Memory);
    }
}
