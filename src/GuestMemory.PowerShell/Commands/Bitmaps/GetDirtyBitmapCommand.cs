using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-DirtyBitmap: which pages were written.</summary>
[Cmdlet(VerbsCommon.Get, "DirtyBitmap", DefaultParameterSetName = MemorySet)]
[OutputType(typeof(DirtyBitmap), typeof(AddressRange))]
public sealed class GetDirtyBitmapCommand : DirtyBitmapCmdlet
{
    private const string LogSet = "Log";

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
        if (ParameterSetName == LogSet) ReadFrom([new DirtyPart(LogPath, _ => [ReadLog(ResolvePath(LogPath))])]);
        else base.ProcessRecord();
    }

    /// <inheritdoc/>
    private protected override void ReadFrom(IReadOnlyList<DirtyPart> parts)
    {
        foreach (var part in parts)
        {
            Attempt(() =>
            {
                foreach (var bitmap in part.Read(Clear)) Write(bitmap);
            }, part.Target);
        }
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
