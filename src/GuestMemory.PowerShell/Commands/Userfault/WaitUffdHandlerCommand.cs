using System.Diagnostics;
using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;

namespace GuestMemory.PowerShell.Commands;

/// <summary>What Wait-UffdHandler waits for.</summary>
public enum UffdHandlerCondition
{
    /// <summary>The handler has ended.</summary>
    Stopped,
    /// <summary>A VM is served.</summary>
    Serving,
    /// <summary>All memory of every VM that is served is present.</summary>
    Restored,
    /// <summary>No VM is served any more, after at least one was.</summary>
    Idle,
}

/// <summary>Wait-UffdHandler: waits until handlers have ended or have reached a state.</summary>
[Cmdlet(VerbsLifecycle.Wait, "UffdHandler", DefaultParameterSetName = HandlerSet)]
[OutputType(typeof(UffdHandler))]
public sealed class WaitUffdHandlerCommand : UffdHandlerCmdlet
{
    private static readonly TimeSpan s_pause = TimeSpan.FromMilliseconds(50);

    /// <summary>The state to wait for.</summary>
    [Parameter]
    public UffdHandlerCondition Until { get; set; }

    /// <summary>The seconds to wait; without a limit by default.</summary>
    [Parameter]
    [ValidateRange(0.0, 1e9)]
    public double Timeout { get; set; } = -1;

    /// <inheritdoc/>
    protected override void Process(UffdHandler handler)
    {
        ArgumentNullException.ThrowIfNull(handler);
        var started = Stopwatch.StartNew();
        while (!IsReached(handler))
        {
            var left = Timeout < 0 ? s_pause : TimeSpan.FromSeconds(Timeout) - started.Elapsed;
            if (left <= TimeSpan.Zero)
                throw new GuestMemoryException(GuestMemoryError.WaitTimeout, $"The handler at {handler} did not reach {Until} within {Timeout} s; it is {handler.State}.");
            if (handler.Wait(left < s_pause ? left : s_pause, StopToken) && !IsReached(handler))
                throw new GuestMemoryException(GuestMemoryError.HandlerFailed, $"The handler at {handler} ended ({handler.State}) before it reached {Until}. {handler.Error}");
        }

        WriteObject(handler);
    }

    private bool IsReached(UffdHandler handler)
    {
        StopToken.ThrowIfCancellationRequested();
        return Until switch
        {
            UffdHandlerCondition.Serving => handler.State is UffdHandlerState.Serving or UffdHandlerState.Limited,
            UffdHandlerCondition.Restored => handler.GetFigures().IsRestored,
            UffdHandlerCondition.Idle => handler is { TotalConnectionCount: > 0, ConnectionCount: 0 },
            _ => handler.State is UffdHandlerState.Stopped or UffdHandlerState.Failed,
        };
    }
}
