using System.Collections;
using System.Diagnostics;
using System.Management.Automation;
using System.Runtime.InteropServices;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Start-UffdHandler: serves page faults of VMs from a memory image.</summary>
[Cmdlet(VerbsLifecycle.Start, "UffdHandler", SupportsShouldProcess = true, DefaultParameterSetName = ImageSet)]
[OutputType(typeof(UffdHandler), typeof(string))]
public sealed class StartUffdHandlerCommand : GuestMemoryCmdlet
{
    private const string ImageSet = "Image";
    private const string MemorySet = "Memory";
    private const string SeveralSet = "Several";

    /// <summary>Where the handler listens.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = ImageSet)]
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = MemorySet)]
    [ValidateNotNullOrEmpty]
    public string SocketPath { get; set; } = "";

    /// <summary>The memory image.</summary>
    [Parameter(Mandatory = true, Position = 1, ValueFromPipelineByPropertyName = true, ParameterSetName = ImageSet)]
    [Alias("Path", "PSPath")]
    [ValidateNotNullOrEmpty]
    public string MemoryPath { get; set; } = "";

    /// <summary>Several images by their names: to each its file, or a hashtable of MemoryPath, SocketPath, Layer, RecordPath and ReplayPath.</summary>
    [Parameter(Mandatory = true, ParameterSetName = SeveralSet)]
    [ValidateNotNullOrEmpty]
    public IDictionary Image { get; set; } = new Hashtable();

    /// <summary>The directory in which each image has its socket, NAME.sock.</summary>
    [Parameter(ParameterSetName = SeveralSet)]
    [ValidateNotNullOrEmpty]
    public string? SocketDirectory { get; set; }

    /// <summary>Regions of this shell, or a whole address space, in place of an image.</summary>
    [Parameter(Mandatory = true, ParameterSetName = MemorySet)]
    [ArgumentCompleter(typeof(RegionCompleter))]
    [Memory]
    [ValidateNotNullOrEmpty]
    public IGuestMemorySource[] Memory { get; set; } = [];

    /// <summary>What is filled, and when.</summary>
    [Parameter]
    public UffdStrategy Strategy { get; set; }

    /// <summary>The bytes of the block that a fault brings in with -Strategy Window.</summary>
    [Parameter]
    [Number]
    public ulong WindowSize { get; set; } = 64 << 10;

    /// <summary>Sparse files with the changes of later snapshots, the oldest first.</summary>
    [Parameter(ParameterSetName = ImageSet)]
    [ValidateNotNullOrEmpty]
    public string[] Layer { get; set; } = [];

    /// <summary>Writes which pages are touched first to this file.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? RecordPath { get; set; }

    /// <summary>Fills the pages of such a file first.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? ReplayPath { get; set; }

    /// <summary>Does not read the image ahead into the page cache.</summary>
    [Parameter(ParameterSetName = ImageSet)]
    [Parameter(ParameterSetName = SeveralSet)]
    public SwitchParameter NoReadAhead { get; set; }

    /// <summary>How many bytes a second all fills together bring in.</summary>
    [Parameter]
    [Number]
    public ulong FillRate { get; set; }

    /// <summary>How many bytes of the image the fills may bring in for all VMs together.</summary>
    [Parameter]
    [Number]
    public ulong MemoryLimit { get; set; }

    /// <summary>The action if a page cannot be read.</summary>
    [Parameter]
    public UffdOnError OnError { get; set; }

    /// <summary>How many seconds a page that cannot be read is tried again.</summary>
    [Parameter]
    [ValidateRange(0, 1e6)]
    public double SourceTimeout { get; set; } = 5;

    /// <summary>Tracks what VMs write; Get-DirtyBitmap -Handler gives it.</summary>
    [Parameter]
    public SwitchParameter TrackDirty { get; set; }

    /// <summary>How many VMMs may be connected, and how many VMs served, at once.</summary>
    [Parameter]
    [ValidateRange(1, int.MaxValue)]
    public int MaxConnections { get; set; } = int.MaxValue;

    /// <summary>How many seconds a VMM that has connected may take to hand its memory over.</summary>
    [Parameter]
    [ValidateRange(0.001, 1e6)]
    public double HandoverTimeout { get; set; } = 5;

    /// <summary>How many seconds the first VMM may take to connect; for ever otherwise.</summary>
    [Parameter]
    [ValidateRange(0.001, 1e6)]
    public double AcceptTimeout { get; set; }

    /// <summary>Serves metrics at this port of 127.0.0.1; 0 for any that is free.</summary>
    [Parameter]
    [ValidateRange(0, 65535)]
    public int MetricsPort { get; set; }

    /// <summary>Serves metrics at this Unix socket.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? MetricsPath { get; set; }

    /// <summary>The user as whom the handler runs once it has opened socket and image.</summary>
    [Parameter(ParameterSetName = ImageSet)]
    [Parameter(ParameterSetName = SeveralSet)]
    [ArgumentCompleter(typeof(UserCompleter))]
    [ValidateNotNullOrEmpty]
    public string? User { get; set; }

    /// <summary>Further users whose processes may connect.</summary>
    [Parameter]
    [ArgumentCompleter(typeof(UserCompleter))]
    [ValidateNotNullOrEmpty]
    public string[] AllowUser { get; set; } = [];

    /// <summary>Groups whose members' processes may connect.</summary>
    [Parameter]
    [ArgumentCompleter(typeof(GroupCompleter))]
    [ValidateNotNullOrEmpty]
    public string[] AllowGroup { get; set; } = [];

    /// <summary>Runs the handler inside this shell; it ends with the shell.</summary>
    [Parameter(ParameterSetName = ImageSet)]
    [Parameter(ParameterSetName = SeveralSet)]
    [Parameter(Mandatory = true, ParameterSetName = MemorySet)]
    public SwitchParameter InProcess { get; set; }

    /// <summary>Waits until all memory is present or the handler ends; with -InProcess until it ends, and Ctrl+C stops it.</summary>
    [Parameter]
    public SwitchParameter Wait { get; set; }

    /// <summary>Emits the figures as lines of JSON, with -Wait each second and at the end, in place of the handler.</summary>
    [Parameter]
    public SwitchParameter AsJson { get; set; }

    /// <summary>Also listens where every user may replace the socket.</summary>
    [Parameter]
    public SwitchParameter Force { get; set; }

    private static readonly TimeSpan s_lineInterval = TimeSpan.FromSeconds(1);
    private long _shownAt;

    private static TimeSpan Pause => TimeSpan.FromMilliseconds(250);

    /// <inheritdoc/>
    protected override void ProcessRecord() => Attempt(Start, ParameterSetName == SeveralSet ? Image : SocketPath);

    private void Start()
    {
        IReadOnlyList<UffdImageOptions> images = ParameterSetName == SeveralSet ? UffdImageValues.Parse(Image, SocketDirectory is null ? null : ResolvePath(SocketDirectory), ResolvePath) : [];
        var options = new UffdHandlerOptions
        {
            SocketPath = ParameterSetName == SeveralSet ? "" : ResolvePath(SocketPath),
            MemoryPath = ParameterSetName == ImageSet ? ResolvePath(MemoryPath) : "",
            Images = images,
            // Only on demand is every first touch a fault.
            Strategy = (RecordPath is not null || images.Any(static image => image.RecordPath is not null)) && !MyInvocation.BoundParameters.ContainsKey(nameof(Strategy)) ? UffdStrategy.OnDemand : Strategy,
            WindowSize = WindowSize,
            LayerPaths = [.. Layer.Select(ResolvePath)],
            RecordPath = RecordPath is null ? null : ResolvePath(RecordPath),
            ReplayPath = ReplayPath is null ? null : ResolvePath(ReplayPath),
            NoReadAhead = NoReadAhead,
            FillRate = FillRate,
            MemoryLimit = MemoryLimit,
            OnError = OnError,
            SourceTimeout = TimeSpan.FromSeconds(SourceTimeout),
            TrackDirty = TrackDirty,
            MaxConnections = MaxConnections,
            HandoverTimeout = TimeSpan.FromSeconds(HandoverTimeout),
            AcceptTimeout = AcceptTimeout > 0 ? TimeSpan.FromSeconds(AcceptTimeout) : null,
            MetricsPort = MyInvocation.BoundParameters.ContainsKey(nameof(MetricsPort)) ? MetricsPort : null,
            MetricsPath = MetricsPath is null ? null : ResolvePath(MetricsPath),
            User = User,
            AllowUser = AllowUser,
            AllowGroup = AllowGroup,
            Force = Force,
        };
        var what = ParameterSetName == MemorySet ? "memory of this shell" : images.Count > 0 ? string.Join(", ", images.Select(static image => image.MemoryPath)) : options.MemoryPath;
        if (!ShouldProcess(images.Count > 0 ? string.Join(", ", images.Select(static image => image.SocketPath)) : options.SocketPath, $"Serve page faults from {what}")) return;
        if (!InProcess)
        {
            var handler = UffdHandler.StartProcess(options, StopToken);
            if (Wait) FollowRestore(handler);
            Write(handler);
            return;
        }

        var own = ParameterSetName == MemorySet ? UffdHandler.Start(options, Gather()) : UffdHandler.Start(options);
        Session.Add(own);
        if (Wait) Follow(own);
        else Write(own);
    }

    /// <summary>Waits until all memory is present. The handler goes on, also after Ctrl+C.</summary>
    private void FollowRestore(UffdHandler handler)
    {
        while (!handler.Wait(Pause, StopToken))
        {
            var figures = handler.GetFigures();
            Show(handler, figures);
            // Nothing more comes by itself.
            if (figures.IsRestored || handler.State == UffdHandlerState.Limited) return;
        }

        ThrowIfFailed(handler);
    }

    private void Follow(UffdHandler handler)
    {
        // SIGTERM of a service manager ends the wait as Stop-UffdHandler in another shell does; the handler removes its socket.
        using var terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, context =>
        {
            context.Cancel = true;
            handler.Stop();
        });
        try
        {
            while (!handler.Wait(Pause, StopToken)) Show(handler, handler.GetFigures());
        }
        finally
        {
            handler.Stop();
            Session.Remove(handler);
        }

        ThrowIfFailed(handler);
        Write(handler);
    }

    private GuestMemoryMmap Gather() => Memory is [GuestMemoryMmap memory] ? memory
        : GuestMemoryMmap.FromRegions(Memory.SelectMany(static source => source.GetRegions()).OrderBy(static region => region.GuestAddress));

    private void Write(UffdHandler handler)
    {
        if (AsJson) WriteObject(UffdFiguresText.ToJson(handler.GetFigures()));
        else WriteObject(handler);
    }

    private void Show(UffdHandler handler, UffdFigures figures)
    {
        if (!AsJson) ShowProgress(handler, figures);
        else if (Stopwatch.GetElapsedTime(_shownAt) >= s_lineInterval)
        {
            _shownAt = Stopwatch.GetTimestamp();
            WriteObject(UffdFiguresText.ToJson(figures));
        }
    }

    private void ShowProgress(UffdHandler handler, UffdFigures figures) => WriteProgress(new ProgressRecord(2, $"Serving {handler.MemoryPath ?? $"{handler.Images.Count} images"} at {handler}",
        $"{figures.Vms.Count} VMs, {figures.FaultCount} faults, {Formatting.Size((ulong)figures.ByteCount)}, p50 {Formatting.Time(figures.LatencyP50)}, p99 {Formatting.Time(figures.LatencyP99)}")
    {
        PercentComplete = figures.Vms.Count == 0 ? -1 : (int)figures.PercentPresent,
    });

    private static void ThrowIfFailed(UffdHandler handler)
    {
        if (handler.State == UffdHandlerState.Failed)
            throw new GuestMemoryException(GuestMemoryError.HandlerFailed, $"The handler at {handler} ended: {handler.Error}");
    }
}
