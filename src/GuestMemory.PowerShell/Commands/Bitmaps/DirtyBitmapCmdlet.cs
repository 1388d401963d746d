using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Processes;
using GuestMemory.Core.Userfault;
using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>A cmdlet that reads which pages were written, whatever tracks the writes.</summary>
public abstract class DirtyBitmapCmdlet : MemoryCmdlet
{
    /// <summary>Regions and address spaces.</summary>
    protected const string MemorySet = "Memory";

    /// <summary>Page-fault handlers.</summary>
    protected const string HandlerSet = "Handler";

    /// <summary>VMs of KVM.</summary>
    protected const string VmSet = "Vm";

    /// <summary>VMs of page-fault handlers.</summary>
    protected const string UffdVmSet = "UffdVm";

    /// <summary>Memory of other processes.</summary>
    protected const string TrackingSet = "Tracking";

    /// <summary>The same, by the process.</summary>
    protected const string ProcessSet = "Process";

    /// <inheritdoc/>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = MemorySet)]
    [ArgumentCompleter(typeof(RegionCompleter))]
    [Memory(Backends = true, Except = [typeof(GuestVm), typeof(UffdHandler), typeof(UffdServedVm), typeof(ProcessDirtyTracker), typeof(string)])]
    [ValidateNotNull]
    public override IGuestMemorySource[] Memory { get; set; } = [];

    /// <summary>The VMs whose guests wrote, or their names.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = VmSet)]
    [ArgumentCompleter(typeof(VmNameCompleter))]
    [Vm(Many = true)]
    [ValidateNotNull]
    public GuestVm[] Vm { get; set; } = [];

    /// <summary>Numbers of slots; unless given, all that are logged.</summary>
    [Parameter(ParameterSetName = VmSet)]
    [ArgumentCompleter(typeof(LoggedSlotCompleter))]
    public uint[] Slot { get; set; } = [];

    /// <summary>Page-fault handlers that track what their VMs write.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = HandlerSet)]
    [ValidateNotNull]
    public UffdHandler[] Handler { get; set; } = [];

    /// <summary>VMs of page-fault handlers that track what their VMs write, or their names or numbers.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = UffdVmSet)]
    [ArgumentCompleter(typeof(UffdVmNameCompleter))]
    [UffdVm(Many = true)]
    [ValidateNotNull]
    public UffdServedVm[] UffdVm { get; set; } = [];

    /// <summary>Memory of other processes that Start-DirtyTracking tracks.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = TrackingSet)]
    [ValidateNotNull]
    public ProcessDirtyTracker[] Tracking { get; set; } = [];

    /// <summary>Processes whose memory is tracked.</summary>
    [Parameter(Mandatory = true, ParameterSetName = ProcessSet)]
    [ArgumentCompleter(typeof(TrackedProcessIdCompleter))]
    public int[] ProcessId { get; set; } = [];

    /// <summary>An address in the tracked range; unless given, all ranges of the process.</summary>
    [Parameter(ParameterSetName = ProcessSet)]
    [ArgumentCompleter(typeof(TrackedAddressCompleter))]
    [Number]
    public ulong Address { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        if (ParameterSetName == MemorySet) base.ProcessRecord();
        foreach (var vm in ParameterSetName == VmSet ? Vm : []) Attempt(() => ReadFrom(PartsOf(vm)), vm);
        foreach (var handler in ParameterSetName == HandlerSet ? Handler : []) ReadFrom([new DirtyPart(handler, handler.GetDirtyBitmaps)]);
        foreach (var vm in ParameterSetName == UffdVmSet ? UffdVm : []) ReadFrom([new DirtyPart(vm, vm.GetDirtyBitmaps)]);
        foreach (var tracker in ParameterSetName == TrackingSet ? Tracking : []) ReadFrom(PartsOf([tracker]));
        ulong? address = MyInvocation.BoundParameters.ContainsKey(nameof(Address)) ? Address : null;
        foreach (var process in ParameterSetName == ProcessSet ? ProcessId : []) Attempt(() => ReadFrom(PartsOf(DirtyTrackingLookup.Find(process, address))), process);
    }

    /// <inheritdoc/>
    protected override void EndProcessing()
    {
        if (ParameterSetName == MemorySet) base.EndProcessing();
    }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        ReadFrom([.. memory.Regions.Select(static region => new DirtyPart(region, clear => [region.GetDirtyBitmap(clear)]))]);
    }

    /// <summary>Does the cmdlet's work on one address space, VM or handler.</summary>
    /// <param name="parts">What it consists of; the target of an error is a part's.</param>
    private protected abstract void ReadFrom(IReadOnlyList<DirtyPart> parts);

    private DirtyPart[] PartsOf(GuestVm vm) => [.. (Slot.Length > 0 ? Slot : LoggedSlots(vm)).Select(slot => new DirtyPart(vm, clear => [vm.GetKvmVm().GetDirtyBitmap(slot, clear)]))];

    private DirtyPart[] PartsOf(IEnumerable<ProcessDirtyTracker> trackers) => [.. trackers.Select(tracker => new DirtyPart(tracker, clear => [tracker.GetDirtyBitmap(clear, cancellation: StopToken)]))];

    private static uint[] LoggedSlots(GuestVm vm)
    {
        uint[] logged = [.. vm.Slots.Where(slot => slot.LogDirtyPages).Select(slot => slot.Slot)];
        // A VM that was removed has no slots; asking for one says so.
        if (vm.IsDisposed) return [0];
        return logged.Length > 0
            ? logged
            : throw new GuestMemoryException(GuestMemoryError.DirtyTrackingOff, $"What the guest of VM '{vm.Name}' writes is not logged. Make it with 'New-GuestVm -DirtyTracking'.");
    }
}

/// <summary>A part of what is read, and how: the argument says whether the marks are taken.</summary>
/// <param name="Target">What an error names.</param>
/// <param name="Read">Reads its bitmaps.</param>
internal sealed record DirtyPart(object Target, Func<bool, IEnumerable<DirtyBitmap>> Read);
