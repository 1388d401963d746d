using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Connect-UffdHandler: the VMM's part of the hand-over.</summary>
[Cmdlet(VerbsCommunications.Connect, "UffdHandler", SupportsShouldProcess = true)]
[OutputType(typeof(GuestRegionMmap))]
public sealed class ConnectUffdHandlerCommand : MemoryCmdlet
{
    /// <summary>Where the handler listens.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipelineByPropertyName = true)]
    [ArgumentCompleter(typeof(HandlerSocketCompleter))]
    [ValidateNotNullOrEmpty]
    public string SocketPath { get; set; } = "";

    /// <summary>Emits the connected regions.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        var path = ResolvePath(SocketPath);
        if (!ShouldProcess(path, $"Hand over {memory.Regions.Count} region(s), {Formatting.Size(memory.Size)}")) return;
        UffdRegistration.Connect(path, memory, StopToken);
        if (PassThru) WriteObject(memory.Regions, enumerateCollection: true);
    }
}
