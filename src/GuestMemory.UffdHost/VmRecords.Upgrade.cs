using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <content>The VMs on their way to another supervisor.</content>
internal sealed partial class VmRecords
{
    /// <summary>Whether one VM that cannot be taken over is an error for all: another process still has them.</summary>
    public bool TakesAll { get; init; }

    public int LastId => _last;

    /// <summary>The descriptors of every VM, by the names under which they are kept.</summary>
    public IEnumerable<(string Name, SafeDescriptor Descriptor)> Parts() =>
        _vms.SelectMany(static vm => Parts(vm).Select(part => (Name(vm.Image.Prefix, vm.Id, part.Kind), part.Descriptor)));

    /// <summary>What was counted for VMs that have ended, as the state of a VM without memory.</summary>
    /// <param name="image">Their image; null for the images that were removed.</param>
    public unsafe SafeDescriptor EndedFigures(ServedImage? image)
    {
        var file = Memfd.CreateSealed("uffd-state", (long)UffdVmState.SizeOf(0), 0);
        try
        {
            using var state = new UffdVmState(0, file, isNew: true);
            lock (_lock)
            {
                var ended = image?.Ended ?? _endedOfRemoved;
                state.Counters->Add(ref ended.Counters);
                state.Latency.Add(ended.Latency);
                foreach (var vm in _ending)
                {
                    if (vm.Image != image) continue;
                    state.Counters->Add(ref *vm.State.Counters);
                    state.Latency.Add(vm.State.Latency);
                }
            }

            state.Counters->QueueDepth = 0;
            return file;
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>Counts on where another supervisor stopped.</summary>
    /// <param name="total">VMs that ever came to it.</param>
    /// <param name="lastId">The number of the last.</param>
    public void Continue(int total, int lastId)
    {
        _total = total;
        _last = Math.Max(_last, lastId);
    }

    /// <summary>The same for the VMs of an image that have ended.</summary>
    /// <param name="image">The image; null for those that were removed.</param>
    /// <param name="ended">What it counted for them; null where that is not known.</param>
    public unsafe void Continue(ServedImage? image, SafeDescriptor? ended)
    {
        if (ended is null) return;
        using var state = new UffdVmState(0, ended);
        lock (_lock) (image?.Ended ?? _endedOfRemoved).Add(ref *state.Counters, state.Latency);
    }
}
