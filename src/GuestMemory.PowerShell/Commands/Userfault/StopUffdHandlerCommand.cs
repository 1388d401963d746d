using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Stop-UffdHandler: ends handlers.</summary>
[Cmdlet(VerbsLifecycle.Stop, "UffdHandler", SupportsShouldProcess = true, DefaultParameterSetName = HandlerSet)]
[OutputType(typeof(UffdHandler))]
public sealed class StopUffdHandlerCommand : UffdHandlerCmdlet
{
    /// <summary>Emits the stopped handlers with their last figures.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void Process(UffdHandler handler)
    {
        ArgumentNullException.ThrowIfNull(handler);
        if (!ShouldProcess(handler.ToString(), "Stop the page-fault handler")) return;
        var live = handler.State is not (UffdHandlerState.Stopped or UffdHandlerState.Failed);
        handler.Stop();
        Session.Remove(handler);
        if (live && handler.AbandonedCount > 0)
            WriteWarning($"The handler at {handler} still served {handler.AbandonedCount} VM(s). A thread that touches a missing page of one now waits until that VM ends.");
        if (PassThru) WriteObject(handler);
    }
}
