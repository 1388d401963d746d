using System.Management.Automation;
using GuestMemory.Core.Nbd;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-GuestMemoryExport: the exports of this shell.</summary>
[Cmdlet(VerbsCommon.Get, "GuestMemoryExport")]
[OutputType(typeof(MemoryExport))]
public sealed class GetGuestMemoryExportCommand : GuestMemoryCmdlet
{
    /// <summary>Names, with wildcards.</summary>
    [Parameter(Position = 0, ValueFromPipeline = true, ValueFromPipelineByPropertyName = true)]
    [ArgumentCompleter(typeof(ExportNameCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Name { get; set; } = ["*"];

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var name in Name) Attempt(() => WriteObject(ExportLookup.ByName(name), enumerateCollection: true), name);
    }
}
