using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Processes;
using GuestMemory.Core.Userfault;
using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-DirtyBitmap: which pages were written.</summary>
[Cmdlet(VerbsCommon.Get, "DirtyBitmap", DefaultParameterSetName = MemorySet)]
[OutputType(typeof(DirtyBitmap), typeof(AddressRange))]
public sealed class GetDirtyBitmapCommand : MemoryCmdlet
{
    private const string MemorySet = "Memory";
    private const string LogSet = "Log";
    private const string HandlerSet = "Handler";
    private const string VmSet = "Vm";
    private const string UffdVmSet = "UffdVm";
    private const string TrackingSet = "Tracking";
    private const string ProcessSet = "Process";

    /// <inheritdoc/>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = MemorySet)]
    [ArgumentCompleter(typeof(RegionCompleter))]
    [Memory(Except = [typeof(GuestVm), typeof(UffdHandler), typeof(UffdServedVm), typeof(ProcessDirtyTracker), typeof(string)])]
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

    /// <summary>The file that holds a log.</summary>
    [Parameter(Mandatory = true, ParameterSetName = LogSet)]
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

    /// <summary>Takes the marks: the pages are clean afterwards.</summary>
    [Parameter(ParameterSetName = MemorySet)]
    [Parameter(ParameterSetName = LogSet)]
    [Parameter(ParameterSetName = VmSet)]
    [Parameter(ParameterSetName = HandlerSet)]
    [Parameter(ParameterSetName = UffdVmSet)]
    [Parameter(ParameterSetName = TrackingSet)]
    [Parameter(ParameterSetName = ProcessSet)]
    public SwitchParameter Clear { get; set; }

    /// <summary>Emits the runs of dirty pages instead of the bitmap.</summary>
    [Parameter]
    public SwitchParameter AsRange { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        if (ParameterSetName == MemorySet) base.ProcessRecord();
        else if (ParameterSetName == LogSet) Attempt(() => Write(ReadLog(ResolvePath(LogPath))), LogPath);
        else if (ParameterSetName == VmSet) ReadVms();
        else if (ParameterSetName == HandlerSet) ReadHandlers();
        else if (ParameterSetName == TrackingSet) ReadTrackings(Tracking);
        else if (ParameterSetName == ProcessSet) ReadProcesses();
        else ReadUffdVms();
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
        foreach (var region in memory.Regions) Attempt(() => Write(region.GetDirtyBitmap(Clear)), region);
    }

    private void ReadVms()
    {
        foreach (var vm in Vm)
        {
            Attempt(() =>
            {
                foreach (var slot in Slot.Length > 0 ? Slot : LoggedSlots(vm)) Attempt(() => Write(vm.GetKvmVm().GetDirtyBitmap(slot, Clear)), vm);
            }, vm);
        }
    }

    private void ReadHandlers()
    {
        foreach (var handler in Handler) Attempt(() => WriteAll(handler.GetDirtyBitmaps(Clear)), handler);
    }

    private void ReadUffdVms()
    {
        foreach (var vm in UffdVm) Attempt(() => WriteAll(vm.GetDirtyBitmaps(Clear)), vm);
    }

    private void ReadProcesses()
    {
        ulong? address = MyInvocation.BoundParameters.ContainsKey(nameof(Address)) ? Address : null;
        foreach (var process in ProcessId) Attempt(() => ReadTrackings(DirtyTrackingLookup.Find(process, address)), process);
    }

    private void ReadTrackings(ProcessDirtyTracker[] trackers)
    {
        foreach (var tracker in trackers) Attempt(() => Write(tracker.GetDirtyBitmap(Clear)), tracker);
    }

    private void WriteAll(IEnumerable<DirtyBitmap> bitmaps)
    {
        foreach (var bitmap in bitmaps) Write(bitmap);
    }

    private static uint[] LoggedSlots(GuestVm vm)
    {
        uint[] logged = [.. vm.Slots.Where(slot => slot.LogDirtyPages).Select(slot => slot.Slot)];
        // A VM that was removed has no slots; asking for one says so.
        if (vm.IsDisposed) return [0];
        return logged.Length > 0
            ? logged
            : throw new GuestMemoryException(GuestMemoryError.DirtyTrackingOff, $"What the guest of VM '{vm.Name}' writes is not logged. Make it with 'New-GuestVm -DirtyTracking'.");
    }

    private DirtyBitmap ReadLog(string path)
    {
        ulong? length = MyInvocation.BoundParameters.ContainsKey(nameof(Size)) ? Size : null;
        if (!Clear) return DirtyBitmap.Load(path, Offset, length, StopToken);
        using var log = MmapLogReg.FromPath(path, Offset, length);
        return log.GetAndReset();
    }

    private void Write(DirtyBitmap bitmap)
    {
        if (!AsRange) WriteObject(bitmap);
        else WriteObject(bitmap.GetRanges(), enumerateCollection: true);
    }
}
