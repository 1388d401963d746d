using System.Management.Automation;
using GuestMemory.Core.Userfault;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Restart-UffdHandler: hands the VMs of handlers to new processes that run this module's program.</summary>
[Cmdlet(VerbsLifecycle.Restart, "UffdHandler", SupportsShouldProcess = true, DefaultParameterSetName = HandlerSet)]
[OutputType(typeof(UffdHandler))]
public sealed class RestartUffdHandlerCommand : UffdHandlerCmdlet
{
    /// <summary>How many seconds the new program may take until it serves; after them the old one goes on.</summary>
    [Parameter]
    [ValidateRange(0.001, 1e6)]
    public double Timeout { get; set; } = 60;

    /// <summary>Emits the handlers, as their new processes serve them.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void Process(UffdHandler handler)
    {
        ArgumentNullException.ThrowIfNull(handler);
        if (!ShouldProcess(handler.ToString(), "Hand the VMs to a new process of the page-fault handler")) return;
        handler.Upgrade(TimeSpan.FromSeconds(Timeout), StopToken);
        if (PassThru) WriteObject(handler);
    }
}
