using System.Management.Automation;
using System.Runtime.InteropServices;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Invoke-VmMemoryRequest: executes requests about a VM's memory, on a VM of this shell or through a socket.</summary>
[Cmdlet(VerbsLifecycle.Invoke, "VmMemoryRequest", SupportsShouldProcess = true, DefaultParameterSetName = RequestSet)]
[OutputType(typeof(VmMemoryResponse))]
public sealed class InvokeVmMemoryRequestCommand : VmMemoryRequestCmdlet
{
    private const string RequestSet = "Request";
    private const int MaxShownText = 200;

    private VmMemoryClient? _client;
    private string? _connectedTo;

    /// <summary>Requests, their JSON, or the objects that ConvertFrom-Json makes of it.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ParameterSetName = RequestSet)]
    [ValidateNotNullOrEmpty]
    public object[] Request { get; set; } = [];

    /// <summary>The open files that the JSON names by their places, from 0.</summary>
    [Parameter(ParameterSetName = RequestSet)]
    [Descriptor(Many = true)]
    public DescriptorArgument[] Descriptor { get; set; } = [];

    /// <inheritdoc/>
    [Parameter(ParameterSetName = MmapSet)]
    [Parameter(ParameterSetName = RequestSet)]
    [FileMapping]
    public override FileMappingArgument[] FileMapping { get; set; } = [];

    /// <summary>The VM, or its name.</summary>
    [Parameter(ParameterSetName = RequestSet)]
    [Parameter(ParameterSetName = RegisterSet)]
    [Parameter(ParameterSetName = MmapSet)]
    [Parameter(ParameterSetName = UnregisterSet)]
    [Parameter(ValueFromPipeline = true, ParameterSetName = PrepareSet)]
    [Parameter(ValueFromPipeline = true, ParameterSetName = FreeSet)]
    [Parameter(ValueFromPipeline = true, ParameterSetName = ReclaimSet)]
    [Parameter(ValueFromPipeline = true, ParameterSetName = BalloonSet)]
    [Parameter(ValueFromPipeline = true, ParameterSetName = IoEventSet)]
    [ArgumentCompleter(typeof(VmNameCompleter))]
    [Vm]
    public GuestVm? Vm { get; set; }

    /// <summary>Where a service for the VM listens.</summary>
    [Parameter(ParameterSetName = RequestSet)]
    [Parameter(ValueFromPipelineByPropertyName = true, ParameterSetName = PrepareSet)]
    [Parameter(ValueFromPipelineByPropertyName = true, ParameterSetName = RegisterSet)]
    [Parameter(ValueFromPipelineByPropertyName = true, ParameterSetName = MmapSet)]
    [Parameter(ValueFromPipelineByPropertyName = true, ParameterSetName = FreeSet)]
    [Parameter(ValueFromPipelineByPropertyName = true, ParameterSetName = ReclaimSet)]
    [Parameter(ValueFromPipelineByPropertyName = true, ParameterSetName = BalloonSet)]
    [Parameter(ValueFromPipelineByPropertyName = true, ParameterSetName = UnregisterSet)]
    [Parameter(ValueFromPipelineByPropertyName = true, ParameterSetName = IoEventSet)]
    [ArgumentCompleter(typeof(ServiceSocketCompleter))]
    [ValidateNotNullOrEmpty]
    public string? SocketPath { get; set; }

    /// <summary>The seconds to wait for the service; without a limit by default.</summary>
    [Parameter]
    [ValidateRange(0.001, 1e6)]
    public double Timeout { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        CheckTarget();
        if (ParameterSetName == RequestSet)
        {
            foreach (var item in Request) Attempt(() => InvokeItem(item), item);
            return;
        }

        Attempt(() => WithFiles(opened =>
        {
            var request = MakeRequest(opened);
            if (SocketPath is not null && request is VmMemoryRequest.RegisterMemory { Source: VmMemorySource.ExternalMapping } && !MyInvocation.BoundParameters.ContainsKey(nameof(SourceType)))
            {
                throw new GuestMemoryException(GuestMemoryError.ValueNotSupported,
                    $"Region {Source} is anonymous memory, which another process cannot map. Make it with 'New-MmapRegion -Memfd' or -BackingPath.");
            }

            Invoke(request);
        }), (object?)Vm ?? SocketPath);
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing) Disconnect();
        base.Dispose(disposing);
    }

    private void CheckTarget()
    {
        if (Vm is null == SocketPath is null)
        {
            ThrowTerminatingError(new ErrorRecord(new GuestMemoryException(GuestMemoryError.ValueNotSupported, Vm is null
                ? "Name the VM: -Vm for a VM of this shell, -SocketPath for the socket of a service."
                : "Give -Vm or -SocketPath, not both."), nameof(GuestMemoryError.ValueNotSupported), ErrorCategory.InvalidArgument, null));
        }
    }

    private void InvokeItem(object item) => WithFiles(opened =>
    {
        var descriptors = new List<SafeHandle>();
        foreach (var descriptor in Descriptor) descriptors.Add(descriptor.Open(writable: true, opened));
        foreach (var request in RequestObjects.Read(item, descriptors))
        {
            Attempt(() => Invoke(request is VmMemoryRequest.MmapAndRegisterMemory { FileMappings: null } mmap && FileMapping.Length > 0
                ? mmap with { FileMappings = OpenFileMappings(opened) }
                : request), item);
        }
    });

    private static void WithFiles(Action<List<IDisposable>> action)
    {
        var opened = new List<IDisposable>();
        try
        {
            action(opened);
        }
        finally
        {
            foreach (var file in opened) file.Dispose();
        }
    }

    private void Invoke(VmMemoryRequest request)
    {
        if (!ShouldProcess(Vm is { } vm ? $"VM {vm.Name}" : ResolvePath(SocketPath!), Describe(request))) return;
        var response = Vm is null ? Send(request) : Vm.Execute(request, StopToken);
        WriteObject(response);
        if (response is VmMemoryResponse.Err error) WriteError(error.ToException(), request);
    }

    private VmMemoryResponse Send(VmMemoryRequest request)
    {
        var keep = false;
        try
        {
            var path = ResolvePath(SocketPath!);
            // Each object of the pipeline may name another service.
            if (path != _connectedTo) Disconnect();
            _connectedTo = path;
            _client ??= VmMemoryClient.Connect(path, Timeout > 0 ? TimeSpan.FromSeconds(Timeout) : null, StopToken);
            var response = _client.Send(request, StopToken);
            // A service that waits for more file mappings hangs up.
            keep = response is not VmMemoryResponse.Err || request is not VmMemoryRequest.MmapAndRegisterMemory;
            return response;
        }
        catch (ObjectDisposedException exception)
        {
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "A file that the request names was closed.", exception);
        }
        finally
        {
            // Otherwise the next message could be the answer to this request.
            if (!keep) Disconnect();
        }
    }

    private void Disconnect()
    {
        _client?.Dispose();
        _client = null;
    }

    private static string Describe(VmMemoryRequest request)
    {
        var text = request.ToJson([]);
        return text.Length <= MaxShownText ? text : $"{text[..MaxShownText]}...";
    }
}
