using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-GuestMemory: regions as one guest physical address space.</summary>
[Cmdlet(VerbsCommon.Get, "GuestMemory")]
[OutputType(typeof(GuestMemoryMmap))]
public sealed class GetGuestMemoryCommand : MemoryCmdlet
{
    /// <inheritdoc/>
    [Parameter(Mandatory = true, ValueFromPipeline = true)]
    [ArgumentCompleter(typeof(RegionCompleter))]
    [Memory(Backends = true)]
    [ValidateNotNull]
    public override IGuestMemorySource[] Memory { get; set; } = [];

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory) => WriteObject(memory);
}
