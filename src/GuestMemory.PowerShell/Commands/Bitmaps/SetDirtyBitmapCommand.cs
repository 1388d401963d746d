using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.VhostUser;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Set-DirtyBitmap: replaces the dirty bitmap of regions (BitmapReplace).</summary>
[Cmdlet(VerbsCommon.Set, "DirtyBitmap", SupportsShouldProcess = true, DefaultParameterSetName = LogSet)]
[OutputType(typeof(GuestRegionMmap), typeof(GuestMemoryMmap), typeof(VhostUserDisk))]
public sealed class SetDirtyBitmapCommand : MemoryCmdlet
{
    private const string LogSet = "Log";
    private const string MemfdSet = "Memfd";
    private const string PrivateSet = "Private";

    private bool _used;

    // What is neither a region nor an address space: a back end.
    private IGuestMemorySource? _other;

    /// <inheritdoc/>
    [Parameter(Mandatory = true, ValueFromPipeline = true)]
    [ArgumentCompleter(typeof(RegionCompleter))]
    [Memory(Backends = true)]
    [ValidateNotNull]
    public override IGuestMemorySource[] Memory { get; set; } = [];

    /// <summary>The file that holds the log.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = LogSet)]
    [Alias("Path")]
    [ValidateNotNullOrEmpty]
    public string LogPath { get; set; } = "";

    /// <summary>Where in the file the log starts, in bytes.</summary>
    [Parameter(ParameterSetName = LogSet)]
    [Number]
    public ulong Offset { get; set; }

    /// <summary>The length of the log in bytes.</summary>
    [Parameter(ParameterSetName = LogSet)]
    [Alias("Length", "Count")]
    [Number]
    public ulong Size { get; set; }

    /// <summary>Makes the log in a sealed memfd.</summary>
    [Parameter(Mandatory = true, ParameterSetName = MemfdSet)]
    public SwitchParameter Memfd { get; set; }

    /// <summary>Gives each region a private bitmap.</summary>
    [Parameter(Mandatory = true, ParameterSetName = PrivateSet)]
    public SwitchParameter Private { get; set; }

    /// <summary>Counts pages as rust-vmm does.</summary>
    [Parameter(ParameterSetName = LogSet)]
    [Parameter(ParameterSetName = MemfdSet)]
    public SwitchParameter Strict { get; set; }

    /// <summary>Does not copy marks that were not taken.</summary>
    [Parameter]
    public SwitchParameter DiscardDirty { get; set; }

    /// <summary>Emits the input.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    private protected override void ProcessOther(IGuestMemorySource source)
    {
        _other = source;
        try
        {
            base.ProcessOther(source);
        }
        finally
        {
            _other = null;
        }
    }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        if (_used && ParameterSetName == LogSet)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "More than one address space came through the pipeline; each needs a log of its own. Set them one by one.");
        var path = ParameterSetName == LogSet ? ResolvePath(LogPath) : null;
        if (!ShouldProcess(string.Join(", ", memory.Regions), path is not null ? $"Mark writes in the log {path}" : Memfd ? "Mark writes in the log of a new memfd" : "Mark writes in a private bitmap")) return;
        _used = true;

        // The regions that mark in the log keep it.
        using var log = Open(path, MmapLogReg.RequiredLength(new GuestAddress(memory.LastAddress)));
        GuestMemoryRegion.SetTrackers(memory.Regions, region => log is null
            ? AtomicBitmap.WithLength(region.Size)
            : new AtomicBitmapMmap(new GuestAddress(region.GuestAddress), region.Size, log, Strict), keepDirty: !DiscardDirty);
        if (!PassThru) return;
        if (_other is not null) WriteObject(_other);
        else if (Memory.Contains(memory)) WriteObject(memory);
        else WriteObject(memory.Regions, enumerateCollection: true);
    }

    private MmapLogReg? Open(string? path, ulong required) =>
        path is not null ? MmapLogReg.FromPath(path, Offset, MyInvocation.BoundParameters.ContainsKey(nameof(Size)) ? Size : null, required, create: true)
        : Memfd ? MmapLogReg.FromMemfd(required)
        : null;
}
