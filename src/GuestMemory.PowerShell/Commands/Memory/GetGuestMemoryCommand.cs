using System.Management.Automation;
using GuestMemory.Core;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-GuestMemory: regions as one guest physical address space.</summary>
[Cmdlet(VerbsCommon.Get, "GuestMemory")]
[OutputType(typeof(GuestMemoryMmap))]
public sealed class GetGuestMemoryCommand : MemoryCmdlet
{
    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory) => WriteObject(memory);
}
