using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-VmMemoryService: the services of this shell.</summary>
[Cmdlet(VerbsCommon.Get, "VmMemoryService", DefaultParameterSetName = "Socket")]
[OutputType(typeof(VmMemoryService))]
public sealed class GetVmMemoryServiceCommand : GuestMemoryCmdlet
{
    /// <summary>Socket paths, with wildcards.</summary>
    [Parameter(Position = 0, ParameterSetName = "Socket")]
    [ArgumentCompleter(typeof(ServiceSocketCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] SocketPath { get; set; } = [];

    /// <summary>Numbers of services.</summary>
    [Parameter(Mandatory = true, ParameterSetName = "Id")]
    [ArgumentCompleter(typeof(ServiceIdCompleter))]
    public int[] Id { get; set; } = [];

    /// <summary>The VM, or its name.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = "Vm")]
    [ArgumentCompleter(typeof(VmNameCompleter))]
    [Vm]
    [ValidateNotNull]
    public GuestVm? Vm { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        if (Vm is not null) WriteObject(Vm.GetServices(), enumerateCollection: true);
        else if (SocketPath.Length == 0 && Id.Length == 0) WriteObject(Session.Services, enumerateCollection: true);
        foreach (var path in SocketPath) Attempt(() => WriteObject(ServiceLookup.BySocket(path, ResolvePath), enumerateCollection: true), path);
        foreach (var id in Id)
        {
            Attempt(() => WriteObject(Session.Services.FirstOrDefault(service => service.Id == id)
                ?? throw new GuestMemoryException(GuestMemoryError.ServiceNotFound, $"There is no service {id} in this shell. 'Get-VmMemoryService' lists them.")), id);
        }
    }
}
