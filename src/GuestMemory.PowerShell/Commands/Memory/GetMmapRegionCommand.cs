using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Images;
using GuestMemory.Core.Processes;
using GuestMemory.Core.Xen;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-MmapRegion: the regions that were made in this shell.</summary>
[Cmdlet(VerbsCommon.Get, "MmapRegion")]
[OutputType(typeof(GuestRegionMmap), typeof(GuestRegionXen), typeof(GuestRegionImage), typeof(GuestRegionProcess))]
public sealed class GetMmapRegionCommand : GuestMemoryCmdlet
{
    /// <summary>Names, with wildcards.</summary>
    [Parameter(Position = 0, ValueFromPipeline = true, ValueFromPipelineByPropertyName = true)]
    [ArgumentCompleter(typeof(RegionNameCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Name { get; set; } = ["*"];

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var name in Name) Attempt(() => WriteObject(RegionLookup.ByName(name), enumerateCollection: true), name);
    }
}
