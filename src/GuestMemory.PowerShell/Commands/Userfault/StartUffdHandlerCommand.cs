using System.Management.Automation;
using System.Runtime.InteropServices;
using GuestMemory.Core;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Start-UffdHandler: serves page faults of VMs from a memory image.</summary>
[Cmdlet(VerbsLifecycle.Start, "UffdHandler", SupportsShouldProcess = true)]
[OutputType(typeof(UffdHandler))]
public sealed class StartUffdHandlerCommand : GuestMemoryCmdlet
{
    /// <summary>Where the handler listens.</summary>
    [Parameter(Mandatory = true, Position = 0)]
    [ValidateNotNullOrEmpty]
    public string SocketPath { get; set; } = "";

    /// <summary>The memory image.</summary>
    [Parameter(Mandatory = true, Position = 1, ValueFromPipelineByPropertyName = true)]
    [Alias("Path", "PSPath")]
    [ValidateNotNullOrEmpty]
    public string MemoryPath { get; set; } = "";

    /// <summary>How faults are answered.</summary>
    [Parameter]
    public UffdStrategy Strategy { get; set; }

    /// <summary>A further user whose processes may connect.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? AllowUser { get; set; }

    /// <summary>Runs the handler inside this shell.</summary>
    [Parameter]
    public SwitchParameter InProcess { get; set; } = true;

    /// <summary>Waits until the handler ends; Ctrl+C stops it.</summary>
    [Parameter]
    public SwitchParameter Wait { get; set; }

    /// <summary>Listens also where everyone may replace the socket.</summary>
    [Parameter]
    public SwitchParameter Force { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord() => Attempt(Start, SocketPath);

    private void Start()
    {
        var options = new UffdHandlerOptions
        {
            SocketPath = ResolvePath(SocketPath),
            MemoryPath = ResolvePath(MemoryPath),
            Strategy = Strategy,
            AllowUser = AllowUser,
            Force = Force,
        };
        if (!InProcess)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "The handler runs inside the shell only; leave -InProcess:$false out.");
        if (!ShouldProcess(options.SocketPath, $"Serve page faults from {options.MemoryPath}")) return;
        var handler = UffdHandler.Start(options);
        Session.Add(handler);
        if (Wait) Follow(handler);
        else WriteObject(handler);
    }

    private void Follow(UffdHandler handler)
    {
        // A service manager's SIGTERM ends the wait like a Stop-UffdHandler elsewhere would; the socket goes with the handler.
        using var terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, context =>
        {
            context.Cancel = true;
            handler.Stop();
        });
        try
        {
            while (!handler.Wait(TimeSpan.FromMilliseconds(250), StopToken))
            {
                WriteProgress(new ProgressRecord(2, $"Serving {handler.MemoryPath} at {handler.SocketPath}",
                    $"{handler.ConnectionCount} VMs, {handler.FaultCount} faults, {Formatting.Size((ulong)handler.ByteCount)}, p50 {Formatting.Time(handler.LatencyP50)}, p99 {Formatting.Time(handler.LatencyP99)}"));
            }
        }
        finally
        {
            handler.Stop();
            Session.Remove(handler);
        }

        if (handler.State == UffdHandlerState.Failed)
            throw new GuestMemoryException(GuestMemoryError.HandlerFailed, $"The handler at {handler.SocketPath} ended: {handler.Error}");
        WriteObject(handler);
    }
}
