using System.Management.Automation;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Restart-UffdHandler: hands the VMs of handlers to new processes that run this module's program.</summary>
[Cmdlet(VerbsLifecycle.Restart, "UffdHandler", SupportsShouldProcess = true, DefaultParameterSetName = "Handler")]
[OutputType(typeof(UffdHandler))]
public sealed class RestartUffdHandlerCommand : GuestMemoryCmdlet
{
    /// <summary>The handlers.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ParameterSetName = "Handler")]
    [ArgumentCompleter(typeof(PositionCompleter<HandlerSocketCompleter>))]
    [ValidateNotNull]
    public UffdHandler[] Handler { get; set; } = [];

    /// <summary>Socket paths, with wildcards.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = "Socket")]
    [ArgumentCompleter(typeof(HandlerSocketCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] SocketPath { get; set; } = [];

    /// <summary>How many seconds the new program may take until it serves; after them the old one goes on.</summary>
    [Parameter]
    [ValidateRange(0.001, 1e6)]
    public double Timeout { get; set; } = 60;

    /// <summary>Emits the handlers, as their new processes serve them.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var handler in Handler) Attempt(() => Restart(handler), handler);
        foreach (var path in SocketPath)
        {
            Attempt(() =>
            {
                foreach (var handler in HandlerLookup.BySocket(path, ResolvePath)) Attempt(() => Restart(handler), handler);
            }, path);
        }
    }

    private void Restart(UffdHandler handler)
    {
        if (!ShouldProcess(handler.SocketPath, "Hand the VMs to a new process of the page-fault handler")) return;
        handler.Upgrade(TimeSpan.FromSeconds(Timeout), StopToken);
        if (PassThru) WriteObject(handler);
    }
}
