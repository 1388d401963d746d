using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>
/// A cmdlet that works on a guest's memory. The regions of the pipeline form one address space when it ends; each GuestMemoryMmap is an
/// address space of its own.
/// </summary>
public abstract class MemoryCmdlet : GuestMemoryCmdlet
{
    private readonly List<GuestMemoryRegion> _regions = [];
    private bool _any;
    private bool _refused;

    /// <summary>The regions, or whole address spaces.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = ParameterAttribute.AllParameterSets)]
    [ArgumentCompleter(typeof(RegionCompleter))]
    [Memory]
    [ValidateNotNull]
    public virtual IGuestMemorySource[] Memory { get; set; } = [];

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var source in Memory)
        {
            _any = true;
            if (source is GuestMemoryRegion region) _regions.Add(region);
            else if (source is GuestMemoryMmap memory) Attempt(() => ProcessHeld(memory), memory);
            else _refused |= !Attempt(() => ProcessOther(source), source);
        }
    }

    /// <inheritdoc/>
    protected override void EndProcessing()
    {
        // Without any input there is an error, or an export of nothing would look like a success.
        if (_regions.Count > 0 || !_any) ProcessRegions();
    }

    /// <summary>Does the cmdlet's work on the regions that came until now, as one address space; what comes later is of another one.</summary>
    private protected void ProcessRegions()
    {
        // Without a part that was refused the address space would be another one.
        if (!_refused) Attempt(() => ProcessHeld(GuestMemoryMmap.FromRegions(_regions.OrderBy(region => region.GuestAddress))), _regions.Count == 1 ? _regions[0] : _regions.ToArray());
        _regions.Clear();
        _refused = false;
    }

    /// <summary>Whether regions came that are of an address space which is not complete yet.</summary>
    private protected bool HasRegions => _regions.Count > 0 || _refused;

    /// <summary>Does the cmdlet's work on something that is neither a region nor an address space: unless overridden, on its regions as one address space.</summary>
    private protected virtual void ProcessOther(IGuestMemorySource source) => ProcessHeld(GuestMemoryMmap.FromRegions(source.GetRegions()));

    /// <summary>Whether a process that was attached to be paused stands still while the cmdlet works on its memory.</summary>
    private protected virtual bool HoldsProcesses => true;

    /// <summary>Does the cmdlet's work on one address space.</summary>
    protected abstract void Process(GuestMemoryMmap memory);

    /// <summary>The same; a process whose memory it is stands still meanwhile where it was attached so.</summary>
    private void ProcessHeld(GuestMemoryMmap memory) => Held(memory, () => Process(memory));

    /// <summary>Does work on an address space; a process whose memory it is stands still meanwhile where it was attached so.</summary>
    private protected void Held(GuestMemoryMmap memory, Action work)
    {
        using var hold = HoldsProcesses ? memory.Hold() : null;
        work();
    }
}
