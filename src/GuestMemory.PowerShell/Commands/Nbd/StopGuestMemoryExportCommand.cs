using System.Management.Automation;
using GuestMemory.Core.Nbd;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Stop-GuestMemoryExport: ends exports.</summary>
[Cmdlet(VerbsLifecycle.Stop, "GuestMemoryExport", SupportsShouldProcess = true, DefaultParameterSetName = "Export")]
[OutputType(typeof(MemoryExport))]
public sealed class StopGuestMemoryExportCommand : GuestMemoryCmdlet
{
    /// <summary>The exports.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ParameterSetName = "Export")]
    [ArgumentCompleter(typeof(PositionCompleter<ExportNameCompleter>))]
    [ValidateNotNull]
    public MemoryExport[] Export { get; set; } = [];

    /// <summary>Names, with wildcards.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = "Name")]
    [ArgumentCompleter(typeof(ExportNameCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Name { get; set; } = [];

    /// <summary>Emits the stopped exports with their last figures.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var export in Export) Stop(export);
        foreach (var name in Name)
        {
            Attempt(() =>
            {
                foreach (var export in ExportLookup.ByName(name)) Stop(export);
            }, name);
        }
    }

    private void Stop(MemoryExport export)
    {
        if (!ShouldProcess(export.ToString(), "Stop exporting memory")) return;
        export.Dispose();
        Session.Remove(export);
        if (PassThru) WriteObject(export);
    }
}
