using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Remove-MmapRegion: unmaps regions.</summary>
[Cmdlet(VerbsCommon.Remove, "MmapRegion", SupportsShouldProcess = true, DefaultParameterSetName = "Region")]
[OutputType(typeof(void))]
public sealed class RemoveMmapRegionCommand : GuestMemoryCmdlet
{
    /// <summary>The regions, or whole address spaces.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ParameterSetName = "Region")]
    [ArgumentCompleter(typeof(PositionCompleter<RegionNameCompleter>))]
    [Alias("Memory")]
    [Memory(Except = [typeof(string)])]
    [ValidateNotNull]
    public IGuestMemorySource[] Region { get; set; } = [];

    /// <summary>Names, with wildcards.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = "Name")]
    [ArgumentCompleter(typeof(RegionNameCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Name { get; set; } = [];

    /// <summary>Removes a region also while a handler serves it; the handler loses it.</summary>
    [Parameter]
    public SwitchParameter Force { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var source in Region)
        {
            Attempt(() =>
            {
                foreach (var region in source.GetRegions()) Remove(region);
            }, source);
        }

        foreach (var name in Name)
        {
            Attempt(() =>
            {
                foreach (var region in RegionLookup.ByName(name)) Remove(region);
            }, name);
        }
    }

    private void Remove(GuestMemoryRegion region)
    {
        if (!ShouldProcess(region.ToString(), "Unmap")) return;
        Attempt(() =>
        {
            region.GetMemory().Release(Force);
            Session.Remove(region);
        }, region);
    }
}
