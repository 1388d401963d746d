using Microsoft.Extensions.Logging;

namespace GuestMemory.UffdHost;

/// <summary>What the processes of a handler log: ids stay what they are, 1 and on for a handler, 20 for its workers, 40 for an upgrade, 60 for VMs.</summary>
internal static partial class HandlerEvents
{
    public const int VmFailedId = 60;
    public const int PeerRefusedId = 61;

    /// <summary>The value of <see cref="VmFailed"/> that is the number of the VM.</summary>
    public const string Vm = "Vm";

    /// <summary>The value of <see cref="PeerRefused"/> that is the number of the user; as the parameter is called, since the text does not have it.</summary>
    public const string User = "user";

    [LoggerMessage(1, LogLevel.Information, "listening at {Socket}, serving {Image}, controlled at {Control}")]
    public static partial void Listening(this ILogger logger, string socket, string image, string control);

    [LoggerMessage(2, LogLevel.Information, "stopped; {Vms} VMs were still served{Kept}")]
    public static partial void Stopped(this ILogger logger, int vms, string kept);

    [LoggerMessage(3, LogLevel.Error, "failed: {Error}")]
    public static partial void Failed(this ILogger logger, string error);

    /// <summary>Something went wrong, and the handler goes on.</summary>
    [LoggerMessage(4, LogLevel.Warning, "{Error}")]
    public static partial void WentWrong(this ILogger logger, string error);

    [LoggerMessage(5, LogLevel.Warning, "the inherited descriptor '{Name}' cannot be used")]
    public static partial void DescriptorUnusable(this ILogger logger, string name);

    [LoggerMessage(6, LogLevel.Warning, "the service manager could not be told {State}: {Error}")]
    public static partial void NotTold(this ILogger logger, string state, string error);

    [LoggerMessage(7, LogLevel.Information, "serving the image '{Image}', {MemoryPath}, at {Socket}")]
    public static partial void ImageAdded(this ILogger logger, string image, string memoryPath, string socket);

    [LoggerMessage(8, LogLevel.Information, "the image '{Image}' is removed as ordered, {Vms} VMs were served from it")]
    public static partial void ImageRemoved(this ILogger logger, string image, int vms);

    [LoggerMessage(20, LogLevel.Information, "worker {Worker} started")]
    public static partial void WorkerStarted(this ILogger logger, int worker);

    [LoggerMessage(21, LogLevel.Information, "worker {Worker} started as the spare one")]
    public static partial void SpareStarted(this ILogger logger, int worker);

    [LoggerMessage(22, LogLevel.Error, "worker {Worker}")]
    public static partial void WorkerBroke(this ILogger logger, int worker, Exception exception);

    [LoggerMessage(23, LogLevel.Error, "the supervisor has ended; worker {Worker} serves until its {Vms} VMs have ended")]
    public static partial void SupervisorEnded(this ILogger logger, int worker, int vms);

    [LoggerMessage(40, LogLevel.Information, "process {Successor} is to take over ({Program})")]
    public static partial void IsToTakeOver(this ILogger logger, int successor, string program);

    [LoggerMessage(41, LogLevel.Information, "process {Successor} has taken over")]
    public static partial void HasTakenOver(this ILogger logger, int successor);

    [LoggerMessage(42, LogLevel.Information, "took {Vms} VMs over")]
    public static partial void TookOver(this ILogger logger, int vms);

    [LoggerMessage(43, LogLevel.Warning, "{File} keeps its name: {Error}")]
    public static partial void KeepsName(this ILogger logger, string file, string error);

    [LoggerMessage(44, LogLevel.Warning, "the process that was to be taken over from has ended; its VMs are served from here")]
    public static partial void PredecessorEnded(this ILogger logger);

    /// <summary>Something went wrong with a VM, which may cause that as often as it wants.</summary>
    [LoggerMessage(VmFailedId, LogLevel.Warning, "VM {Vm}, {Name}, process {ProcessId}: {Error}")]
    public static partial void VmFailed(this ILogger logger, int vm, string name, int processId, string error);

    /// <summary>A process that handed over no VM did something wrong.</summary>
#pragma warning disable SYSLIB1015 // The error names the user.
    [LoggerMessage(PeerRefusedId, LogLevel.Warning, "{Error}")]
    public static partial void PeerRefused(this ILogger logger, uint user, string error);
#pragma warning restore SYSLIB1015

    [LoggerMessage(62, LogLevel.Information, "VM {Vm}, {Name}, process {ProcessId}, is stopped as ordered ({Action})")]
    public static partial void VmStopped(this ILogger logger, int vm, string name, int processId, Core.Userfault.UffdOnError action);
}
