using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Processes;
using GuestMemory.Core.Userfault;
using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>
/// What to type after an error. The library's messages name no cmdlet and no switch; this does, as the recommendation that PowerShell
/// shows under the message.
/// </summary>
internal static class Advice
{
    /// <summary>The advice for an error of the library, or null where its message says all there is.</summary>
    /// <param name="exception">The error.</param>
    /// <param name="invocation">The cmdlet that met it, and its parameters.</param>
    /// <param name="target">What it worked on.</param>
    public static string? For(GuestMemoryException exception, InvocationInfo invocation, object? target) => IsRefusedSource(exception, invocation)
        ? "'-Source Compare' compares samples of the memory instead: it misses what is written back between two of them, and only needs the right to read it. SoftDirty and Mincore say less; Auto takes what works."
        : For(exception, invocation.MyCommand, target);

    private static bool IsRefusedSource(GuestMemoryException exception, InvocationInfo invocation) => invocation.MyCommand.Name == "Start-DirtyTracking" && ProcessDirtyTracker.IsRefusal(exception.Error)
        && (!invocation.BoundParameters.TryGetValue("Source", out var source) || source is not (ProcessTrackingSource.Compare or ProcessTrackingSource.Auto));

    private static string? For(GuestMemoryException exception, CommandInfo command, object? target) => exception.Error switch
    {
        GuestMemoryError.FileExists or GuestMemoryError.BaseSizeMismatch when HasForce(command) => "-Force replaces the file.",
        GuestMemoryError.ImageInUse when HasForce(command) => "'Stop-UffdHandler' stops a handler that serves the file; -Force writes it nevertheless.",
        GuestMemoryError.InsecureDirectory when HasForce(command) => "-Force listens there nevertheless.",
        GuestMemoryError.RegionInUse when HasForce(command) => "'Stop-UffdHandler', 'Stop-VhostUserBackend' or 'Remove-GuestVm' ends what uses the region; -Force takes the memory away from it.",
        GuestMemoryError.VmsInService when HasForce(command) => "'Stop-UffdVm' stops VMs one by one; -Force gives all of the image's up.",
        GuestMemoryError.ImageUnsupported when command.Name == "Import-GuestMemory" => "'-Format Raw' opens any file as plain memory.",
        GuestMemoryError.LayoutMismatch => "-Layout gives the ranges: 'Import-GuestMemory vm.mem -Layout 0-3GiB, 4GiB-5GiB'.",
        GuestMemoryError.DigestNotFound => "'sha256sum FILE > FILE.sha256', in the folder of the file, computes a digest of what it is now.",
        GuestMemoryError.LayerUntrusted when command.Name == "Export-GuestMemory" => "-Force adds the pages to those that FILE.dirty tells; delete FILE.dirty where it is of another file.",
        GuestMemoryError.LayerUntrusted when command.Name == "Merge-GuestMemoryImage" => "'Export-GuestMemory -Format Diff' writes which pages a diff has beside it, as FILE.dirty; -Force takes what looks like data for its pages.",
        GuestMemoryError.NoMemoryRegion => "Pipe regions, 'Get-MmapRegion | ...', or give them with -Memory.",
        GuestMemoryError.DirtyTrackingOff => target switch
        {
            GuestVm => "Make the VM with 'New-GuestVm -DirtyTracking'.",
            int or ProcessDirtyTracker => "'Start-DirtyTracking -ProcessId PID -Address ADDRESS -Size SIZE' begins it; 'Get-DirtyTracking' lists what is tracked.",
            UffdHandler or UffdServedVm or RefusedMemory { Value: UffdServedVm } => "Start the handler with 'Start-UffdHandler -TrackDirty'.",
            _ => "Make the region with 'New-MmapRegion -DirtyTracking', or give it a bitmap with 'Set-DirtyBitmap -Private'.",
        },
        GuestMemoryError.ValueNotSupported when command.Name == "Start-GuestMemoryExport" && exception.Message.Contains("2^63", StringComparison.Ordinal) => "-Packed lays the regions one behind the other.",
        GuestMemoryError.LogOfFrontEnd => "'Set-DirtyBitmap -Private' gives the memory a bitmap of its own.",
        GuestMemoryError.InvalidLog when command.Name == "Import-DirtyBitmap" => "'Get-DirtyBitmap -LogPath' reads a dirty log.",
        GuestMemoryError.ProcessEnded when target is not IGuestMemorySource => "'Stop-DirtyTracking' ends what is left of the tracking.",
        GuestMemoryError.NoGuestMemory => "-Layout 'GUESTADDRESS+SIZE@PROCESSADDRESS' says where the memory of another program lies; '/proc/PID/maps' has its mappings.",
        GuestMemoryError.LayoutUnknown => "-Monitor PATH asks a QMP socket of QEMU; -Layout '0+3GiB', '4GiB+1GiB' says where the memory lies in the guest, and with '@ADDRESS' also where in the process.",
        GuestMemoryError.MonitorFailed => "Without -Monitor the addresses are those of the machine type; -Layout says them.",
        GuestMemoryError.MemoryNotShared => "A VMM shares its memory by handing a memfd over behind its userfaultfd, as e2b's Firecracker and 'Connect-UffdHandler -ShareMemory' do.",
        GuestMemoryError.HandlerGone when target is not UffdHandler => "'Remove-MmapRegion -Force' removes the region; 'Connect-UffdHandler' connects another.",
        GuestMemoryError.PageTableAmbiguous => "-Levels says how many levels the page tables have.",
        GuestMemoryError.KernelNotFound => "'Get-GuestMemory' shows the addresses of the memory; 'New-MmapRegion -GuestAddress' sets them.",
        GuestMemoryError.RecordNotFound or GuestMemoryError.InvalidRecord => "'Start-UffdHandler -RecordPath FILE' makes a record of what a VM touches.",
        GuestMemoryError.LayerUntrusted => "'Export-GuestMemory -Format Diff' writes which pages a diff has beside it, as FILE.dirty.",
        GuestMemoryError.HandlerStartFailed => "-InProcess runs the handler in this shell.",
        GuestMemoryError.UffdUnsupported or GuestMemoryError.KvmUnsupported or GuestMemoryError.XenUnsupported => "'Test-GuestMemorySupport' shows what this host has.",
        GuestMemoryError.DomainNotFound => "'Get-XenDomain' lists the domains of this host.",
        GuestMemoryError.SocketNotFound or GuestMemoryError.ConnectionRefused => command.Name switch
        {
            "Connect-UffdHandler" => "'Start-UffdHandler -SocketPath PATH -MemoryPath IMAGE' starts a handler.",
            "Invoke-VmMemoryRequest" => "'Start-VmMemoryService -SocketPath PATH -Vm NAME' starts a service.",
            _ => null,
        },
        GuestMemoryError.SyscallFailed when exception is SyscallException { Function: "connect", ErrorCode: Errno.EACCES } => Listener(command) is { } listener ? $"'{listener} -AllowUser {Environment.UserName}' lets this user connect." : null,
        GuestMemoryError.PeerClosed when Listener(command) is { } listener => $"The Error of 'Get-UffdHandler' says why the connection was closed; '{listener} -AllowUser NAME' lets another user connect.",
        GuestMemoryError.RequestFailed when target is VmMemoryRequest request => ForRequest(request, Root(exception)),
        _ => null,
    };

    private static bool HasForce(CommandInfo command) => command.Parameters.ContainsKey("Force");

    /// <summary>What starts the process that a cmdlet connects to.</summary>
    private static string? Listener(CommandInfo command) => command.Name switch
    {
        "Connect-UffdHandler" => "Start-UffdHandler",
        "Invoke-VmMemoryRequest" => "Start-VmMemoryService",
        _ => null,
    };

    /// <summary>What likely helps where a request fails: the answer's texts are those of crosvm, and name an error number at most.</summary>
    private static string? ForRequest(VmMemoryRequest request, string cause) => (request, Number(cause)) switch
    {
        (VmMemoryRequest.UnregisterMemory, null) when cause.StartsWith("can't find", StringComparison.Ordinal) => "Give the RegionId that the registration answered; the VM's GetRegisteredMemory() lists what is registered.",
        (VmMemoryRequest.RegisterMemory or VmMemoryRequest.MmapAndRegisterMemory, "22") =>
            "The guest address and every offset must be multiples of the page size, no size may be 0, and a PCI register must have addresses that the memory fits in.",
        (VmMemoryRequest.RegisterMemory or VmMemoryRequest.MmapAndRegisterMemory, "28") => "Base memory of the VM lies there. Choose another -Destination.",
        (VmMemoryRequest.RegisterMemory or VmMemoryRequest.MmapAndRegisterMemory, "17") => "Other memory lies there. Unregister that first, or choose another -Destination.",
        (VmMemoryRequest.RegisterMemory, "13") => "Open the file for reading and writing, or ask for -Protection Read.",
        (VmMemoryRequest.PrepareSharedMemoryRegion, "22") => "Give a PCI register that has addresses: the VM's AllocateMmio allocates them.",
        (VmMemoryRequest.PrepareSharedMemoryRegion, "17") => "The register is prepared already, or other memory lies there.",
        (VmMemoryRequest.DynamicallyFreeMemoryRanges, "5" or "22") => "Each range must lie in one region of the VM's base memory, and begin with a page.",
        (VmMemoryRequest.IoEventRaw, "2") => "No such event is registered: address and datamatch must be those of the registration.",
        (VmMemoryRequest.IoEventRaw, "17") => "An event is registered there already. End that one with -Register:$false.",
        _ => null,
    };

    private static string Root(Exception exception)
    {
        while (exception.InnerException is { } inner) exception = inner;
        return exception.Message;
    }

    /// <summary>The error number that a message ends with: "... (os error 22)".</summary>
    private static string? Number(string message)
    {
        const string Mark = " (os error ";
        var at = message.LastIndexOf(Mark, StringComparison.Ordinal);
        return at >= 0 && message.EndsWith(')') ? message[(at + Mark.Length)..^1] : null;
    }
}
