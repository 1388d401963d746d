using System.Management.Automation;
using GuestMemory.Core.VhostUser;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Stop-VhostUserBackend: ends back ends.</summary>
[Cmdlet(VerbsLifecycle.Stop, "VhostUserBackend", SupportsShouldProcess = true, DefaultParameterSetName = "Backend")]
[OutputType(typeof(VhostUserDisk))]
public sealed class StopVhostUserBackendCommand : GuestMemoryCmdlet
{
    /// <summary>The back ends.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ParameterSetName = "Backend")]
    [ArgumentCompleter(typeof(PositionCompleter<BackendNameCompleter>))]
    [ValidateNotNull]
    public VhostUserDisk[] Backend { get; set; } = [];

    /// <summary>Names, with wildcards.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = "Name")]
    [ArgumentCompleter(typeof(BackendNameCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Name { get; set; } = [];

    /// <summary>Emits the stopped back ends.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var backend in Backend) Stop(backend);
        foreach (var name in Name)
        {
            Attempt(() =>
            {
                foreach (var backend in BackendLookup.ByName(name)) Stop(backend);
            }, name);
        }
    }

    private void Stop(VhostUserDisk backend)
    {
        if (!ShouldProcess(backend.ToString(), "Stop providing a disk")) return;
        if (backend.ProcessId is { } process)
            WriteWarning($"Process {process} is connected to the back end '{backend.Name}'; its VM has no disk from now on.");
        backend.Dispose();
        Session.Remove(backend);
        if (PassThru) WriteObject(backend);
    }
}
