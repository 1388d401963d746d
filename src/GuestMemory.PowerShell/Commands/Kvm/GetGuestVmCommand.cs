using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-GuestVm: the VMs that were made in this shell.</summary>
[Cmdlet(VerbsCommon.Get, "GuestVm")]
[OutputType(typeof(GuestVm))]
public sealed class GetGuestVmCommand : GuestMemoryCmdlet
{
    /// <summary>Names, with wildcards.</summary>
    [Parameter(Position = 0, ValueFromPipeline = true, ValueFromPipelineByPropertyName = true)]
    [ArgumentCompleter(typeof(VmNameCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Name { get; set; } = ["*"];

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var name in Name) Attempt(() => WriteObject(VmLookup.ByName(name), enumerateCollection: true), name);
    }
}
