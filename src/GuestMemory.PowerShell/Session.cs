using System.Collections.Concurrent;
using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Nbd;
using GuestMemory.Core.Processes;
using GuestMemory.Core.Userfault;
using GuestMemory.Core.VhostUser;
using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Commands;

namespace GuestMemory.PowerShell;

/// <summary>What the cmdlets made in this process and have not yet removed.</summary>
internal static class Session
{
    private static readonly ConcurrentDictionary<string, GuestMemoryRegion> s_regions = new(StringComparer.OrdinalIgnoreCase);
    private static readonly ConcurrentDictionary<int, UffdHandler> s_handlers = new();
    private static readonly ConcurrentDictionary<string, GuestVm> s_vms = new(StringComparer.OrdinalIgnoreCase);
    private static readonly ConcurrentDictionary<ProcessDirtyTracker, bool> s_trackings = new();
    private static readonly ConcurrentDictionary<string, VhostUserDisk> s_backends = new(StringComparer.OrdinalIgnoreCase);
    private static readonly ConcurrentDictionary<ExportJob, bool> s_exportJobs = new();
    private static readonly ConcurrentDictionary<string, MemoryExport> s_exports = new(StringComparer.OrdinalIgnoreCase);
    private static readonly TimeSpan s_exitTime = TimeSpan.FromSeconds(2);
    private static int s_lastRegion;
    private static int s_lastVm;

    static Session() => AppDomain.CurrentDomain.ProcessExit += static (_, _) => TakeSocketsAway();

    /// <summary>The regions; memory of other processes as long as those run.</summary>
    public static IEnumerable<GuestMemoryRegion> Regions => s_regions.Values.Where(static region => !IsGone(region)).OrderBy(region => region.GuestAddress).ThenBy(region => region.Name, StringComparer.OrdinalIgnoreCase);

    /// <summary>The handlers of this shell, and those of this user in processes of their own.</summary>
    public static IEnumerable<UffdHandler> Handlers => s_handlers.Values.OrderBy(handler => handler.Id).Concat(UffdHandler.FindAll());

    /// <summary>The handlers that end with this shell.</summary>
    public static IEnumerable<UffdHandler> OwnHandlers => s_handlers.Values.OrderBy(handler => handler.Id);

    public static IEnumerable<GuestVm> Vms => s_vms.Values.OrderBy(vm => vm.Id);

    /// <summary>The services that take requests for VMs of this shell, and were not stopped.</summary>
    public static IEnumerable<VmMemoryService> Services => Vms.SelectMany(vm => vm.GetServices()).OrderBy(service => service.Id);

    /// <summary>The memory of other processes that is tracked, and was not stopped.</summary>
    public static IEnumerable<ProcessDirtyTracker> Trackings => s_trackings.Keys.OrderBy(tracker => tracker.ProcessId).ThenBy(tracker => tracker.Address);

    /// <summary>The back ends that were not stopped.</summary>
    public static IEnumerable<VhostUserDisk> Backends => s_backends.Values.OrderBy(backend => backend.Name, StringComparer.OrdinalIgnoreCase);

    /// <summary>A back end is named after its socket, where no other is.</summary>
    public static string NextBackendName(string socketPath)
    {
        var name = Path.GetFileNameWithoutExtension(socketPath);
        var free = name;
        for (var number = 2; HasBackend(free); number++) free = $"{name}-{number}";
        return free;
    }

    public static bool HasBackend(string name) => s_backends.ContainsKey(name);

    public static bool TryAdd(VhostUserDisk backend) => s_backends.TryAdd(backend.Name, backend);

    public static void Remove(VhostUserDisk backend) => s_backends.TryRemove(new KeyValuePair<string, VhostUserDisk>(backend.Name, backend));

    /// <summary>The exports that were not stopped.</summary>
    public static IEnumerable<MemoryExport> Exports => s_exports.Values.OrderBy(export => export.Name, StringComparer.OrdinalIgnoreCase);

    /// <summary>An export is named after its socket or its port, where no other is.</summary>
    public static string NextExportName(string? socketPath)
    {
        var name = socketPath is null ? "memory" : Path.GetFileNameWithoutExtension(socketPath);
        var free = name;
        for (var number = 2; HasExport(free); number++) free = $"{name}-{number}";
        return free;
    }

    public static bool HasExport(string name) => s_exports.ContainsKey(name);

    public static bool TryAdd(MemoryExport export) => s_exports.TryAdd(export.Name, export);

    public static void Remove(MemoryExport export) => s_exports.TryRemove(new KeyValuePair<string, MemoryExport>(export.Name, export));

    public static string NextVmName()
    {
        string name;
        do name = $"vm{Interlocked.Increment(ref s_lastVm) - 1}";
        while (s_vms.ContainsKey(name));
        return name;
    }

    public static bool HasVm(string name) => s_vms.ContainsKey(name);

    public static bool TryAdd(GuestVm vm) => s_vms.TryAdd(vm.Name, vm);

    public static void Remove(GuestVm vm) => s_vms.TryRemove(new KeyValuePair<string, GuestVm>(vm.Name, vm));

    public static string NextRegionName()
    {
        string name;
        do name = $"mem{Interlocked.Increment(ref s_lastRegion) - 1}";
        while (s_regions.ContainsKey(name));
        return name;
    }

    public static bool HasRegion(string name) => s_regions.ContainsKey(name);

    public static bool TryAdd(GuestMemoryRegion region) => s_regions.TryAdd(region.Name, region);

    public static void Remove(GuestMemoryRegion region) => s_regions.TryRemove(new KeyValuePair<string, GuestMemoryRegion>(region.Name, region));

    /// <summary>Lists the memory of a process that was attached, in the place of what was listed of it before and of what processes had that have ended.</summary>
    public static void Add(AttachedProcess process)
    {
        foreach (var former in s_regions.Values.OfType<GuestRegionProcess>().Where(region => region.ProcessId == process.ProcessId || region.HasEnded)) Remove(former);
        foreach (var region in process.Memory.Regions) TryAdd(region);
    }

    private static bool IsGone(GuestMemoryRegion region)
    {
        if (region is not GuestRegionProcess { HasEnded: true }) return false;
        Remove(region);
        return true;
    }

    /// <summary>A name for memory of a process that no other region has.</summary>
    public static string AttachedName(string program, int processId, int place)
    {
        var name = $"{program}{processId}-{place}";
        var free = name;
        for (var number = 2; s_regions.TryGetValue(free, out var region) && region is not GuestRegionProcess; number++) free = $"{name}-{number}";
        return free;
    }

    public static void Add(UffdHandler handler) => s_handlers[handler.Id] = handler;

    public static void Remove(UffdHandler handler) => s_handlers.TryRemove(handler.Id, out _);

    public static void Add(ProcessDirtyTracker tracker) => s_trackings[tracker] = true;

    public static void Remove(ProcessDirtyTracker tracker) => s_trackings.TryRemove(tracker, out _);

    public static void Add(ExportJob export) => s_exportJobs[export] = true;

    public static void Remove(ExportJob export) => s_exportJobs.TryRemove(export, out _);

    /// <summary>Removes sockets, and files that are half written, when the shell ends, since the kernel frees everything else. It must not delay the end of the shell.</summary>
    private static void TakeSocketsAway()
    {
        var stops = Services.Select(static service => (Action)service.Stop).Concat(OwnHandlers.Select(static handler => (Action)handler.Stop))
            .Concat(Backends.Select(static backend => (Action)backend.Dispose)).Concat(Exports.Select(static export => (Action)export.Dispose))
            .Concat(s_exportJobs.Keys.Select(static job => (Action)job.StopJob)).Select(Task.Run).ToArray();
        Task.WhenAll(stops).ContinueWith(static _ => { }, TaskScheduler.Default).Wait(s_exitTime);
    }

    /// <summary>Ends everything.</summary>
    public static void Clear()
    {
        foreach (var job in s_exportJobs.Keys) job.StopJob();
        s_exportJobs.Clear();
        foreach (var export in s_exports.Values) export.Dispose();
        s_exports.Clear();
        foreach (var vm in s_vms.Values) vm.Dispose();
        s_vms.Clear();
        foreach (var region in s_regions.Values) region.Dispose();
        s_regions.Clear();
        foreach (var handler in s_handlers.Values) handler.Dispose();
        s_handlers.Clear();
        foreach (var tracker in s_trackings.Keys) tracker.Dispose();
        s_trackings.Clear();
        foreach (var backend in s_backends.Values) backend.Dispose();
        s_backends.Clear();
    }
}

/// <summary>Frees everything when the module is removed.</summary>
public sealed class ModuleCleanup : IModuleAssemblyCleanup
{
    /// <inheritdoc/>
    public void OnRemove(PSModuleInfo psModuleInfo)
    {
        var services = Session.Services.Where(service => service.State == VmMemoryServiceState.Running).ToArray();
        if (services.Length > 0)
            Warn($"GuestMemory: {services.Length} service(s) for VMs of this shell are stopped with the module: {string.Join(", ", services.Select(service => service.SocketPath))}.");
        var live = Session.OwnHandlers.Where(handler => handler.State is not (UffdHandlerState.Stopped or UffdHandlerState.Failed)).ToArray();
        if (live.Length > 0)
            Warn($"GuestMemory: {live.Length} page-fault handler(s) of this shell are stopped with the module: {string.Join(", ", live.Select(handler => handler.ToString()))}. A VM that one served stops at its next missing page, and must be killed.");
        var backends = Session.Backends.ToArray();
        if (backends.Length > 0)
            Warn($"GuestMemory: {backends.Length} vhost-user back end(s) of this shell are stopped with the module: {string.Join(", ", backends.Select(backend => backend.ToString()))}. A VM that is connected to one has no disk from now on.");
        var exports = Session.Exports.ToArray();
        if (exports.Length > 0)
            Warn($"GuestMemory: {exports.Length} export(s) of memory are stopped with the module: {string.Join(", ", exports.Select(export => export.Name))}.");
        Session.Clear();
    }

    private static void Warn(string text)
    {
        using var shell = System.Management.Automation.PowerShell.Create(RunspaceMode.CurrentRunspace);
        shell.AddScript("param($text) $host.UI.WriteWarningLine($text)").AddArgument(text).Invoke();
    }
}
