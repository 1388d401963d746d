using System.Management.Automation;
using System.Text;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-GuestRegionUffdMapping: the mapping list of a hand-over.</summary>
[Cmdlet(VerbsCommon.Get, "GuestRegionUffdMapping", DefaultParameterSetName = FromMemory)]
[OutputType(typeof(GuestRegionUffdMapping), typeof(string))]
public sealed class GetGuestRegionUffdMappingCommand : MemoryCmdlet
{
    private const string FromMemory = "Memory";
    private const string FromJson = "Json";

    /// <summary>The regions, or whole address spaces.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = FromMemory)]
    [ArgumentCompleter(typeof(RegionCompleter))]
    [Memory]
    [ValidateNotNull]
    public override IGuestMemorySource[] Memory { get; set; } = [];

    /// <summary>The JSON of a mapping list.</summary>
    [Parameter(Mandatory = true, ParameterSetName = FromJson)]
    [ValidateNotNullOrEmpty]
    public string? Json { get; set; }

    /// <summary>Emits the JSON that goes over the socket.</summary>
    [Parameter]
    public SwitchParameter AsJson { get; set; }

    /// <inheritdoc/>
    protected override void EndProcessing()
    {
        if (ParameterSetName == FromMemory) base.EndProcessing();
        else Attempt(() => Write(UffdMappingList.FromJson(Encoding.UTF8.GetBytes(Json!))), null);
    }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory) => Write(UffdMappingList.FromMemory(memory));

    private void Write(IReadOnlyList<GuestRegionUffdMapping> mappings)
    {
        if (AsJson) WriteObject(Encoding.UTF8.GetString(UffdMappingList.ToJson(mappings)));
        else WriteObject(mappings, enumerateCollection: true);
    }
}
