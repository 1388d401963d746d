using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>New-MmapRegion: maps memory at a guest physical address.</summary>
[Cmdlet(VerbsCommon.New, "MmapRegion", SupportsShouldProcess = true, DefaultParameterSetName = Anonymous)]
[OutputType(typeof(GuestRegionMmap))]
public sealed class NewMmapRegionCommand : GuestMemoryCmdlet
{
    private const string Anonymous = "Anonymous";
    private const string File = "File";
    private const string MemfdSet = "Memfd";

    /// <summary>The length in bytes.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipelineByPropertyName = true)]
    [Alias("Length", "Count")]
    [Number]
    public ulong Size { get; set; }

    /// <summary>The guest physical address of the first byte.</summary>
    [Parameter(Position = 1, ValueFromPipelineByPropertyName = true)]
    [Alias("Address")]
    [Number]
    public ulong GuestAddress { get; set; }

    /// <summary>The file to map.</summary>
    [Parameter(Mandatory = true, ParameterSetName = File, ValueFromPipelineByPropertyName = true)]
    [Alias("Path", "PSPath")]
    [ValidateNotNullOrEmpty]
    public string? BackingPath { get; set; }

    /// <summary>Where in the file the mapping starts, in bytes.</summary>
    [Parameter(ParameterSetName = File, ValueFromPipelineByPropertyName = true)]
    [Number]
    public ulong FileOffset { get; set; }

    /// <summary>Backs the memory by a sealed memfd.</summary>
    [Parameter(Mandatory = true, ParameterSetName = MemfdSet)]
    public SwitchParameter Memfd { get; set; }

    /// <summary>The size of the huge pages to use, in bytes.</summary>
    [Parameter(ParameterSetName = Anonymous)]
    [Parameter(ParameterSetName = MemfdSet)]
    [ArgumentCompleter(typeof(HugePageSizeCompleter))]
    [Number]
    public ulong HugePageSize { get; set; }

    /// <summary>What may be done with the memory.</summary>
    [Parameter]
    public MemoryProtection Protection { get; set; } = MemoryProtection.ReadWrite;

    /// <summary>MAP_ flags instead of the usual ones.</summary>
    [Parameter]
    public MapFlags MapFlags { get; set; }

    /// <summary>Gives the region a dirty bitmap.</summary>
    [Parameter]
    public SwitchParameter DirtyTracking { get; set; }

    /// <summary>A name for the region.</summary>
    [Parameter(ValueFromPipelineByPropertyName = true)]
    [ValidateNotNullOrEmpty]
    public string? Name { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord() => Attempt(Map, Name ?? Formatting.Hex(GuestAddress));

    private void Map()
    {
        if (Name is not null && Session.HasRegion(Name)) throw NameInUse(Name);
        Core.GuestRegionMmap.CheckFits(new GuestAddress(GuestAddress), Size);
        var path = BackingPath is null ? null : ResolvePath(BackingPath);
        if (!ShouldProcess($"{Formatting.Size(Size)} at guest address {Formatting.Hex(GuestAddress)}", path is null ? "Map memory" : $"Map {path}")) return;

        var builder = new MmapRegionBuilder(Size).WithProtection(Protection).WithHugePages(HugePageSize).WithDirtyTracking(DirtyTracking);
        if (path is not null) builder.WithFile(path, FileOffset);
        if (Memfd) builder.WithMemfd();
        if (MyInvocation.BoundParameters.ContainsKey(nameof(MapFlags))) builder.WithFlags(MapFlags);
        var mapping = builder.Build();
        var region = new GuestRegionMmap(mapping, new GuestAddress(GuestAddress), Name ?? Session.NextRegionName());
        if (!Session.TryAdd(region))
        {
            mapping.Dispose();
            throw NameInUse(region.Name);
        }

        WriteObject(region);
    }

    private static GuestMemoryException NameInUse(string name) =>
        new(GuestMemoryError.NameInUse, $"There is a region '{name}' already. Give another -Name, or remove that one: 'Remove-MmapRegion -Name {name}'.");
}
