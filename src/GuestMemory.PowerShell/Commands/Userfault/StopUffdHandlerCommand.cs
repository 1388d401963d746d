using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Stop-UffdHandler: ends handlers.</summary>
[Cmdlet(VerbsLifecycle.Stop, "UffdHandler", SupportsShouldProcess = true, DefaultParameterSetName = "Handler")]
[OutputType(typeof(UffdHandler))]
public sealed class StopUffdHandlerCommand : GuestMemoryCmdlet
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

    /// <summary>Emits the stopped handlers with their last figures.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var handler in Handler) Attempt(() => Stop(handler), handler);
        foreach (var path in SocketPath)
        {
            Attempt(() =>
            {
                foreach (var handler in HandlerLookup.BySocket(path, ResolvePath)) Stop(handler);
            }, path);
        }
    }

    private void Stop(UffdHandler handler)
    {
        if (!ShouldProcess(handler.SocketPath, "Stop the page-fault handler")) return;
        var live = handler.State is not (UffdHandlerState.Stopped or UffdHandlerState.Failed);
        handler.Stop();
        Session.Remove(handler);
        if (live && handler.AbandonedCount > 0)
            WriteWarning($"The handler at {handler.SocketPath} still served {handler.AbandonedCount} VM(s). A thread that touches a missing page of one now waits until that VM ends.");
        if (PassThru) WriteObject(handler);
    }
}
