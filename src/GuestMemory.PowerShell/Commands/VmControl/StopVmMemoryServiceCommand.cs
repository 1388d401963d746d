using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Stop-VmMemoryService: ends services.</summary>
[Cmdlet(VerbsLifecycle.Stop, "VmMemoryService", SupportsShouldProcess = true, DefaultParameterSetName = "Service")]
[OutputType(typeof(VmMemoryService))]
public sealed class StopVmMemoryServiceCommand : GuestMemoryCmdlet
{
    /// <summary>The services.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ParameterSetName = "Service")]
    [ArgumentCompleter(typeof(PositionCompleter<ServiceSocketCompleter>))]
    [ValidateNotNull]
    public VmMemoryService[] Service { get; set; } = [];

    /// <summary>Socket paths, with wildcards.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = "Socket")]
    [ArgumentCompleter(typeof(ServiceSocketCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] SocketPath { get; set; } = [];

    /// <summary>Emits the stopped services with their last figures.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var service in Service) Attempt(() => Stop(service), service);
        foreach (var path in SocketPath)
        {
            Attempt(() =>
            {
                foreach (var service in ServiceLookup.BySocket(path, ResolvePath)) Stop(service);
            }, path);
        }
    }

    private void Stop(VmMemoryService service)
    {
        if (!ShouldProcess(service.SocketPath ?? $"service {service.Id}", "Stop taking requests about a VM's memory")) return;
        service.Stop();
        if (PassThru) WriteObject(service);
    }
}
