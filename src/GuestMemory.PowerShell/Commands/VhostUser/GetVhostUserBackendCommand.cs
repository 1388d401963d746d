using System.Management.Automation;
using GuestMemory.Core.VhostUser;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-VhostUserBackend: the back ends of this shell.</summary>
[Cmdlet(VerbsCommon.Get, "VhostUserBackend")]
[OutputType(typeof(VhostUserDisk))]
public sealed class GetVhostUserBackendCommand : GuestMemoryCmdlet
{
    /// <summary>Names, with wildcards.</summary>
    [Parameter(Position = 0, ValueFromPipeline = true, ValueFromPipelineByPropertyName = true)]
    [ArgumentCompleter(typeof(BackendNameCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Name { get; set; } = ["*"];

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var name in Name) Attempt(() => WriteObject(BackendLookup.ByName(name), enumerateCollection: true), name);
    }
}
