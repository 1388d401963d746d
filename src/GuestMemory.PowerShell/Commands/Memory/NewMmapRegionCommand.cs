using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Xen;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>New-MmapRegion: maps memory at a guest physical address.</summary>
[Cmdlet(VerbsCommon.New, "MmapRegion", SupportsShouldProcess = true, DefaultParameterSetName = Anonymous)]
[OutputType(typeof(GuestRegionMmap), typeof(GuestRegionXen))]
public sealed class NewMmapRegionCommand : GuestMemoryCmdlet
{
    private const string Anonymous = "Anonymous";
    private const string File = "File";
    private const string MemfdSet = "Memfd";
    private const string Foreign = "XenForeign";
    private const string Grant = "XenGrant";

    private bool _isNameGiven;

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

    /// <summary>Maps frames of another Xen domain.</summary>
    [Parameter(Mandatory = true, ParameterSetName = Foreign)]
    public SwitchParameter XenForeign { get; set; }

    /// <summary>Maps pages that another Xen domain grants.</summary>
    [Parameter(Mandatory = true, ParameterSetName = Grant)]
    public SwitchParameter XenGrant { get; set; }

    /// <summary>The domain whose memory it is. Required, which PowerShell is not told: it would take files from the pipeline for no files.</summary>
    [Parameter(ParameterSetName = Foreign, ValueFromPipelineByPropertyName = true)]
    [Parameter(ParameterSetName = Grant, ValueFromPipelineByPropertyName = true)]
    [Alias("Id")]
    [ArgumentCompleter(typeof(XenDomainIdCompleter))]
    public uint? DomainId { get; set; }

    /// <summary>The grant references of the pages.</summary>
    [Parameter(ParameterSetName = Grant, ValueFromPipelineByPropertyName = true)]
    [ValidateNotNullOrEmpty]
    public uint[]? GrantReference { get; set; }

    /// <summary>Maps a granted page for each access to it only.</summary>
    [Parameter(ParameterSetName = Grant)]
    public SwitchParameter OnDemand { get; set; }

    /// <summary>What may be done with the memory.</summary>
    [Parameter]
    public MemoryProtection Protection { get; set; } = MemoryProtection.ReadWrite;

    /// <summary>MAP_ flags instead of the usual ones.</summary>
    [Parameter]
    public MapFlags MapFlags { get; set; }

    /// <summary>Gives the region a dirty bitmap.</summary>
    [Parameter]
    public SwitchParameter DirtyTracking { get; set; }

    /// <summary>A name for the region; an empty one is none.</summary>
    [Parameter(ValueFromPipelineByPropertyName = true)]
    public string? Name { get; set; }

    /// <inheritdoc/>
    protected override void BeginProcessing() => _isNameGiven = IsBound(nameof(Name));

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        // A domain from the pipeline has a name of its own; it may have several regions.
        var name = string.IsNullOrEmpty(Name) || ((XenForeign || XenGrant) && !_isNameGiven) ? null : Name;
        Attempt(() => Map(name), name ?? Formatting.Hex(GuestAddress));
    }

    private void Map(string? name)
    {
        if (name is not null && Session.HasRegion(name)) throw NameInUse(name);
        if (DomainId is null && (XenForeign || XenGrant))
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"-{ParameterSetName} needs -DomainId, the number of the domain whose memory it is. 'Get-XenDomain' lists the domains.");
        GuestMemoryRegion.CheckFits(new GuestAddress(GuestAddress), Size);
        var path = BackingPath is null ? null : ResolvePath(BackingPath);
        var action = XenForeign ? $"Map memory of domain {DomainId}" : XenGrant ? $"Map pages that domain {DomainId} grants" : path is null ? "Map memory" : $"Map {path}";
        if (!ShouldProcess($"{Formatting.Size(Size)} at guest address {Formatting.Hex(GuestAddress)}", action)) return;

        name ??= Session.NextRegionName();
        GuestMemoryRegion region = XenForeign || XenGrant
            ? new GuestRegionXen(MapXen(), new GuestAddress(GuestAddress), name)
            : new GuestRegionMmap(MapHere(path), new GuestAddress(GuestAddress), name);
        if (!Session.TryAdd(region))
        {
            region.Dispose();
            throw NameInUse(region.Name);
        }

        WriteObject(region);
    }

    private MmapRegion MapHere(string? path)
    {
        var builder = new MmapRegionBuilder(Size).WithProtection(Protection).WithHugePages(HugePageSize).WithDirtyTracking(DirtyTracking);
        if (path is not null) builder.WithFile(path, FileOffset);
        if (Memfd) builder.WithMemfd();
        if (IsBound(nameof(MapFlags))) builder.WithFlags(MapFlags);
        return builder.Build();
    }

    private XenMmapRegion MapXen()
    {
        using var device = XenForeign ? XenDevice.OpenPrivcmd() : XenDevice.OpenGntdev();
        var flags = XenForeign ? MmapXenFlags.Foreign : OnDemand ? MmapXenFlags.Grant | MmapXenFlags.NoAdvanceMap : MmapXenFlags.Grant;
        return (XenMmapRegion)XenMmapRegion.FromRange(
            new MmapRange(Size, new GuestAddress(GuestAddress), flags, DomainId.GetValueOrDefault())
            {
                File = device,
                Protection = Protection,
                Flags = IsBound(nameof(MapFlags)) ? MapFlags : null,
                GrantReferences = GrantReference,
                DirtyTracking = DirtyTracking,
            },
            StopToken);
    }

    private bool IsBound(string parameter) => MyInvocation.BoundParameters.ContainsKey(parameter);

    private static GuestMemoryException NameInUse(string name) =>
        new(GuestMemoryError.NameInUse, $"There is a region '{name}' already. Give another -Name, or remove that one: 'Remove-MmapRegion -Name {name}'.");
}
