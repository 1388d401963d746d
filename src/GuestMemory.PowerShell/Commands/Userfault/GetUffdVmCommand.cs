using System.Globalization;
using System.Management.Automation;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-UffdVm: the VMs that handlers serve.</summary>
[Cmdlet(VerbsCommon.Get, "UffdVm", DefaultParameterSetName = SocketSet)]
[OutputType(typeof(UffdServedVm))]
public sealed class GetUffdVmCommand : GuestMemoryCmdlet
{
    private const string SocketSet = "Socket";
    private const string HandlerSet = "Handler";

    /// <summary>Names of VMs, with wildcards.</summary>
    [Parameter(Position = 0)]
    [ArgumentCompleter(typeof(UffdVmNameCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Name { get; set; } = [];

    /// <summary>Numbers of VMs.</summary>
    [Parameter]
    [ArgumentCompleter(typeof(UffdVmIdCompleter))]
    public int[] Id { get; set; } = [];

    /// <summary>The socket paths of the handlers, with wildcards.</summary>
    [Parameter(ParameterSetName = SocketSet)]
    [ArgumentCompleter(typeof(HandlerSocketCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] SocketPath { get; set; } = [];

    /// <summary>The handlers.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = HandlerSet)]
    [ValidateNotNull]
    public UffdHandler[] Handler { get; set; } = [];

    private readonly List<UffdServedVm> _vms = [];

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        if (ParameterSetName == HandlerSet) Add(Handler);
        else if (SocketPath.Length == 0) Add(Session.Handlers);
        foreach (var path in SocketPath) Attempt(() => Add(HandlerLookup.BySocket(path, ResolvePath)), path);
    }

    /// <inheritdoc/>
    protected override void EndProcessing()
    {
        if (Name.Length == 0 && Id.Length == 0) WriteObject(_vms, enumerateCollection: true);
        foreach (var name in Name) Attempt(() => Write(UffdVmLookup.ByName(_vms, name), name), name);
        foreach (var id in Id) Attempt(() => Write([.. _vms.Where(vm => vm.Id == id)], id.ToString(CultureInfo.InvariantCulture)), id);
    }

    private void Add(IEnumerable<UffdHandler> handlers)
    {
        foreach (var handler in handlers) Attempt(() => _vms.AddRange(handler.GetVms()), handler);
    }

    private void Write(UffdServedVm[] found, string text)
    {
        if (found.Length == 0 && !WildcardPattern.ContainsWildcardCharacters(text)) throw UffdVmLookup.NotFound(text);
        WriteObject(found, enumerateCollection: true);
    }
}
