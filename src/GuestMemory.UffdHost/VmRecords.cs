using System.Collections;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>The VMs that are kept, here and, where there is one, with the service manager; and the figures of those that have ended.</summary>
internal sealed partial class VmRecords(Systemd systemd) : IEnumerable<VmRecord>, IDisposable
{
    // More VMs than come in the life of a handler; the next one must have a number too.
    private const int MaxId = 1 << 30;

    private readonly List<VmRecord> _vms = [];
    // VMs that have ended and that the worker still has: it counts the faults that it has just answered.
    private readonly List<VmRecord> _ending = [];
    private readonly Lock _lock = new();
    private readonly UffdTotals _endedOfRemoved = new();
    private int _last;
    private int _total;

    public int Count => _vms.Count;

    public VmRecord? Find(int id) => _vms.Find(vm => vm.Id == id);

    public int NextId() => ++_last;

    /// <summary>The names of the VMs.</summary>
    public string[] Names(VmRecord? except = null) => [.. _vms.Where(vm => vm != except).Select(static vm => vm.List.Name ?? "")];

    public void Add(VmRecord vm)
    {
        lock (_lock) _vms.Add(vm);
        _total++;
        _last = Math.Max(_last, vm.Id);
        // One that was restored is there.
        if (!systemd.IsThere || vm.IsUsed) return;
        foreach (var (kind, descriptor) in Parts(vm)) systemd.Store(Name(vm.Image.Prefix, vm.Id, kind), descriptor);
    }

    /// <summary>A VM has ended. What it handed over is closed; its figures may grow until the worker has let go of it.</summary>
    public void Remove(VmRecord vm)
    {
        lock (_lock)
        {
            if (!_vms.Remove(vm)) return;
            _ending.Add(vm);
            if (!vm.IsOffered) Close(vm);
        }

        Forget(vm);
        vm.Dispose();
    }

    /// <summary>The worker counts nothing more for a VM that has ended.</summary>
    public void Close(int id)
    {
        lock (_lock)
        {
            if (_ending.Find(vm => vm.Id == id) is { } vm) Close(vm);
        }
    }

    /// <summary>The worker has ended, and counts nothing more.</summary>
    public void CloseAll()
    {
        lock (_lock)
        {
            foreach (var vm in _ending.ToArray()) Close(vm);
        }
    }

    /// <summary>The handler ends for good: nobody else is to keep anything.</summary>
    public void Forget()
    {
        foreach (var vm in _vms) Forget(vm);
    }

    /// <summary>Whether VMs are served from an image, or the worker still counts for one that was.</summary>
    public bool Uses(ServedImage image) => _vms.Exists(vm => vm.Image == image) || _ending.Exists(vm => vm.Image == image);

    /// <summary>An image is gone; what was counted for its VMs stays counted.</summary>
    public void Forget(ServedImage image)
    {
        lock (_lock) _endedOfRemoved.Add(image.Ended);
    }

    /// <summary>The VMs among the descriptors that came with this process, each with its connection; what is no VM, or half of one, is left.</summary>
    /// <param name="imageOf">The image of a prefix; null where there is none, or it is not the one that VMs were given.</param>
    /// <param name="failed">Called with what is wrong with one that cannot be taken over.</param>
    public List<VmRecord> Restore(Func<string, ServedImage?> imageOf, Action<string> failed)
    {
        var restored = new List<VmRecord>();
        foreach (var group in systemd.Descriptors.Where(item => Parse(item.Name) is not null).GroupBy(item => Parse(item.Name) is var (prefix, id, _) ? (prefix, id) : default).ToArray())
        {
            var (prefix, id) = group.Key;
            // Also of one that cannot be taken over: its descriptors stay where they are kept, for a program that can.
            _last = Math.Max(_last, id);
            var parts = group.GroupBy(item => Parse(item.Name)!.Value.Kind, StringComparer.Ordinal).ToDictionary(kind => kind.Key, kind => kind.First(), StringComparer.Ordinal);
            try
            {
                var image = imageOf(prefix) ?? throw new GuestMemoryException(GuestMemoryError.ImageChanged, "the memory image that it was given was not kept with it");
                if (!parts.TryGetValue("socket", out var socket) || !parts.TryGetValue("process", out var process) || !parts.TryGetValue("uffd", out var uffd) || !parts.TryGetValue("state", out var state) || !parts.TryGetValue("list", out var list))
                    throw new GuestMemoryException(GuestMemoryError.InvalidMapping, "not all of its descriptors were kept by the service manager");
                var memory = parts.GetValueOrDefault("memory").Descriptor;
                var vm = VmRecord.Restore(id, socket.Descriptor, process.Descriptor, uffd.Descriptor, state.Descriptor, list.Descriptor, memory);
                vm.Image = image;
                restored.Add(vm);
                foreach (var part in parts.Values) systemd.Descriptors.Remove(part);
            }
            catch (GuestMemoryException exception) when (!TakesAll)
            {
                failed($"VM {id} cannot be taken over: {exception.Message}");
            }
        }

        return restored;
    }

    /// <summary>VMs that ever came.</summary>
    public int Total => _total;

    /// <summary>What was counted, which the states of the VMs know whoever serves them. Safe from any thread.</summary>
    /// <param name="images">The images that are served.</param>
    /// <param name="error">What went wrong last.</param>
    /// <param name="onError">What follows where a page of a VM cannot be read of which nothing else was said.</param>
    public UffdFigures Figures(IReadOnlyList<ServedImage> images, string? error, UffdOnError onError)
    {
        lock (_lock)
        {
            // First: a page is noted as present after its fault is counted, so that what is restored has all its faults in the sum.
            var vms = _vms.Select(vm => vm.Figures(onError)).ToArray();
            var totals = new UffdTotals();
            totals.Add(_endedOfRemoved);
            foreach (var image in images) AddTotals(image, totals);
            return UffdFigures.OfAll(totals, vms, error);
        }
    }

    /// <summary>The same for the VMs of one image.</summary>
    public UffdFigures Figures(ServedImage image, string? error, UffdOnError onError)
    {
        lock (_lock)
        {
            var vms = _vms.Where(vm => vm.Image == image).Select(vm => vm.Figures(onError)).ToArray();
            var totals = new UffdTotals();
            AddTotals(image, totals);
            return UffdFigures.OfAll(totals, vms, error) with { Image = image.Name, SocketPath = image.SocketPath };
        }
    }

    public IEnumerator<VmRecord> GetEnumerator() => _vms.ToList().GetEnumerator();

    public void Dispose()
    {
        lock (_lock)
        {
            foreach (var vm in _vms)
            {
                vm.Dispose();
                vm.State.Dispose();
            }

            _vms.Clear();
            CloseAll();
        }
    }

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();

    private static IEnumerable<(string Kind, SafeDescriptor Descriptor)> Parts(VmRecord vm)
    {
        IEnumerable<(string, SafeDescriptor)> parts = [("socket", vm.Socket), ("process", vm.Process), ("uffd", vm.Userfaultfd), ("state", vm.StateFile), ("list", vm.ListFile)];
        return vm.MemoryFile is { } memory ? parts.Append(("memory", memory)) : parts;
    }

    /// <param name="prefix">That of the VM's image.</param>
    /// <param name="id">The VM's number.</param>
    /// <param name="kind">Which of its descriptors.</param>
    internal static string Name(string prefix, int id, string kind) => $"{prefix}vm-{id}-{kind}";

    /// <summary>Which part of which VM has a name, exactly as it is given here; null for any other name.</summary>
    internal static (string Prefix, int Id, string Kind)? Parse(string name) =>
        ServedImage.Split(name) is var (prefix, rest)
        && rest.Split('-') is ["vm", var number, ("socket" or "process" or "uffd" or "state" or "list" or "memory") and var kind]
        && int.TryParse(number, System.Globalization.NumberStyles.None, System.Globalization.CultureInfo.InvariantCulture, out var id)
        && id is > 0 and <= MaxId && Name(prefix, id, kind) == name ? (prefix, id, kind) : null;

    /// <summary>Adds what was counted for the VMs of an image. Under the lock.</summary>
    private unsafe void AddTotals(ServedImage image, UffdTotals totals)
    {
        totals.Add(image.Ended);
        foreach (var vm in _vms.Concat(_ending))
        {
            if (vm.Image != image) continue;
            totals.Latency.Add(vm.State.Latency);
            totals.Counters.Add(ref *vm.State.Counters);
        }
    }

    private unsafe void Close(VmRecord vm)
    {
        _ending.Remove(vm);
        vm.Image.Ended.Add(ref *vm.State.Counters, vm.State.Latency);
        vm.State.Dispose();
    }

    private void Forget(VmRecord vm)
    {
        if (!systemd.IsThere) return;
        foreach (var (kind, _) in Parts(vm)) systemd.Remove(Name(vm.Image.Prefix, vm.Id, kind));
    }
}
