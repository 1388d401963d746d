using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Compare-GuestMemory: the ranges in which two memories differ.</summary>
[Cmdlet(VerbsData.Compare, "GuestMemory")]
[OutputType(typeof(MemoryDifference), typeof(MemoryComparisonSummary))]
public sealed class CompareGuestMemoryCommand : VmMemoryCmdlet
{
    private GuestMemoryMmap? _other;
    private GuestMemoryMmap? _opened;

    /// <summary>The other memory.</summary>
    [Parameter(Mandatory = true, Position = 0)]
    [ArgumentCompleter(typeof(RegionCompleter))]
    [Memory(Backends = true)]
    [ValidateNotNullOrEmpty]
    public IGuestMemorySource[] With { get; set; } = [];

    /// <summary>What ranges are counted in.</summary>
    [Parameter]
    [Number]
    [ValidateRange(1ul, 65536ul)]
    public ulong Granularity { get; set; } = 4096;

    /// <summary>Gives the sums, not the ranges.</summary>
    [Parameter]
    public SwitchParameter Summary { get; set; }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        _other ??= Other();
        using var hold = _other.Hold();
        var comparison = new MemoryComparison(memory, _other) { Granularity = (int)Granularity };
        var progress = new ProgressBar(this, "Comparing guest memory", comparison.ComparedSize);
        try
        {
            if (Summary) WriteObject(comparison.Summarize(progress.Report, StopToken));
            else foreach (var difference in comparison.GetDifferences(progress.Report, StopToken)) WriteObject(difference);
        }
        finally
        {
            progress.Complete();
        }
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing && _opened is { } opened)
        {
            foreach (var region in opened.Regions) region.Dispose();
        }

        base.Dispose(disposing);
    }

    private GuestMemoryMmap Other()
    {
        if (With is [GuestMemoryMmap whole]) return whole;
        if (With is [RefusedMemory { Value: UffdServedVm vm }]) return _opened = vm.OpenMemory();
        return GuestMemoryMmap.FromRegions(With.SelectMany(static source => source.GetRegions()).OrderBy(static region => region.GuestAddress));
    }
}
