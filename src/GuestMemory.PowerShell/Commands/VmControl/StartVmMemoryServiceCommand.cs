using System.Management.Automation;
using System.Runtime.InteropServices;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Start-VmMemoryService: takes requests about a VM's memory from other processes.</summary>
[Cmdlet(VerbsLifecycle.Start, "VmMemoryService", SupportsShouldProcess = true)]
[OutputType(typeof(VmMemoryService))]
public sealed class StartVmMemoryServiceCommand : GuestMemoryCmdlet
{
    private static readonly TimeSpan s_pause = TimeSpan.FromMilliseconds(250);

    /// <summary>Where the service listens.</summary>
    [Parameter(Mandatory = true, Position = 0)]
    [ValidateNotNullOrEmpty]
    public string SocketPath { get; set; } = "";

    /// <summary>The VM, or its name.</summary>
    [Parameter(Mandatory = true, Position = 1, ValueFromPipeline = true)]
    [ArgumentCompleter(typeof(VmNameCompleter))]
    [Vm]
    [ValidateNotNull]
    public GuestVm? Vm { get; set; }

    /// <summary>Further users whose processes may connect.</summary>
    [Parameter]
    [ArgumentCompleter(typeof(UserCompleter))]
    [ValidateNotNullOrEmpty]
    public string[] AllowUser { get; set; } = [];

    /// <summary>Groups whose members' processes may connect.</summary>
    [Parameter]
    [ArgumentCompleter(typeof(GroupCompleter))]
    [ValidateNotNullOrEmpty]
    public string[] AllowGroup { get; set; } = [];

    /// <summary>The seconds within which a client must send the file mappings that it announced.</summary>
    [Parameter]
    [ValidateRange(0.001, 1e6)]
    public double MappingTimeout { get; set; } = 5;

    /// <summary>Waits until the service ends; Ctrl+C stops it.</summary>
    [Parameter]
    public SwitchParameter Wait { get; set; }

    /// <summary>Also listens where every user may replace the socket.</summary>
    [Parameter]
    public SwitchParameter Force { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord() => Attempt(Start, SocketPath);

    private void Start()
    {
        var path = ResolvePath(SocketPath);
        if (!ShouldProcess(path, $"Take requests about the memory of VM {Vm!.Name}")) return;
        var service = Vm.StartService(new VmMemoryServiceOptions
        {
            SocketPath = path,
            AllowUser = AllowUser,
            AllowGroup = AllowGroup,
            Force = Force,
            FileMappingTimeout = TimeSpan.FromSeconds(MappingTimeout),
        });
        if (Wait) Follow(service);
        WriteObject(service);
    }

    private void Follow(VmMemoryService service)
    {
        // SIGTERM of a service manager ends the wait; the service removes its socket.
        using var terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, context =>
        {
            context.Cancel = true;
            service.Stop();
        });
        try
        {
            while (!service.Wait(s_pause, StopToken)) Show(service);
        }
        finally
        {
            service.Stop();
        }

        if (service.State == VmMemoryServiceState.Failed)
            throw new GuestMemoryException(GuestMemoryError.ServiceFailed, $"The service at {service.SocketPath} ended: {service.Error}");
    }

    private void Show(VmMemoryService service) => WriteProgress(new ProgressRecord(3, $"Taking requests about VM {Vm!.Name} at {service.SocketPath}",
        $"{service.ConnectionCount} connections, {service.RequestCount} requests, {service.ErrorCount} of them failed"));
}
