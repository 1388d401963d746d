using System.Buffers.Binary;
using System.Text.Json;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;
using GuestMemory.UffdHost;

namespace GuestMemory.Fuzz.Targets;

/// <summary>
/// What the supervisor does with a VMM, from its connection on: it accepts, receives, checks and keeps the VMs; a worker gets each of them with
/// events that a worker before it had read, and with that of a fork where the VMM forks; and a successor takes each over. The first byte says what comes
/// with the first piece and how the VMM behaves, the second how long pieces are, the third how many events there are: 6 bytes each, which are the event,
/// how many pages, and two page numbers. The rest is the stream (<see cref="Vmm.Place"/>).
/// </summary>
internal static class SupervisorTarget
{
    private const int MaxVms = 8;
    private const int MaxEvents = 16;
    private const int EventSize = 6;
    private const int MaxSteps = 4096;

    // Of each the pages of the child are poisoned one by one where they are not registered.
    private const int MaxForks = 2;
    private const ulong ImageLength = Vmm.Length;

    private static readonly Lazy<Vmm> s_vmm = new(Vmm.OfThisProcess);
    private static readonly Lazy<Vmm?> s_forking = new(ForkingVmm.TryStart);
    private static readonly Lazy<PageSource> s_source = new(static () => new MemorySource(GuestMemoryMmap.FromRegions([new GuestRegionMmap(new MmapRegionBuilder(ImageLength).Build(), new GuestAddress(0))])));
    private static readonly Systemd s_systemd = new();

    public static void Run(byte[] input)
    {
        if (input.Length < 3) return;
        _ = s_source.Value;
        var vmm = ((input[0] & 64) != 0 ? s_forking.Value : null) ?? s_vmm.Value;
        var length = Math.Min(input[2] % (MaxEvents + 1), (input.Length - 3) / EventSize) * EventSize;
        var events = input.AsMemory(3, length);
        var stream = vmm.Place(input[(3 + length)..]);
        JsonCoverage.Note(stream);
        Check.ClosesEverything(() => Serve(vmm, input[0], 1 + input[1], events, stream));
    }

    private static void Serve(Vmm vmm, byte how, int piece, ReadOnlyMemory<byte> events, byte[] stream)
    {
        using var files = new Files();
        var path = files.Next();
        var errors = new List<string>();
        using var epoll = new Epoll();
        using var vms = new VmRecords(s_systemd);
        var options = new UffdHandlerOptions { SocketPath = path, MemoryPath = "", MaxConnections = MaxVms, Force = true };
        using var image = new ServedImage(options.OnlyImage, "") { Length = ImageLength };
        var supply = new VmReceiver.Supply(options, epoll, vms, static () => 0, vm => CheckVm(vmm, vm, isTracked: (how & 16) != 0, events.Span), (error, _) => errors.Add(error));
        using var listener = VmReceiver.Open(image, supply, s_systemd, [], acceptTimeout: null);
        using (var peer = UnixSocket.Create(nonBlocking: true))
        {
            Check.Same(0, UnixSocket.TryConnect(peer, path), "connecting");
            var descriptors = vmm.Descriptors(how & 7).Select(static descriptor => descriptor.Number).ToArray();
            piece = Math.Max(piece, stream.Length / 1000);
            for (var at = 0; at < stream.Length; at += piece)
            {
                // It hangs up after what it refuses.
                if (UnixSocket.TrySend(peer, stream.AsSpan(at, Math.Min(piece, stream.Length - at)), at == 0 || (how & 32) != 0 ? descriptors : []) < 0) break;
                Step(epoll);
            }

            if ((how & 8) != 0) UnixSocket.Shutdown(peer);
            Step(epoll);
        }

        // The end of the stream is that of a VM without memory alone.
        Step(epoll);
        foreach (var vm in vms) Check.True(vms.Count <= MaxVms && vmm.Owns(vm.List.Mappings), "a VM is kept whose memory is gone, or too many");
        foreach (var vm in vms)
        {
            vms.Remove(vm);
            listener.VmEnded(vm.Connection);
        }

        Check.Same(0, vms.Count, "the VMs that are left");
        Check.True(listener.IsQuiet, "a hand-over is under way that is over");
        foreach (var error in errors) Check.True(error.Length <= 4096, $"an error of {error.Length} characters");
        ControlTarget.CheckFigures(vms.Figures(image, null, UffdOnError.Poison));
    }

    /// <summary>As the supervisor's loop does, until there is nothing to do.</summary>
    private static void Step(Epoll epoll)
    {
        for (var i = 0; i < MaxSteps; i++)
        {
            var ready = epoll.Wait(0);
            if (ready <= 0) return;
            for (var each = 0; each < ready; each++) (epoll.Owner(each) as IWatched)?.Ready();
        }

        throw new FindingException("the supervisor finds no rest");
    }

    private static void CheckVm(Vmm vmm, VmRecord vm, bool isTracked, ReadOnlySpan<byte> events)
    {
        MappingListTarget.CheckRegions(vm.List.Mappings, ImageLength);
        Check.True(vm.List.Mappings.All(static mapping => mapping.PageSize <= Vmm.Gigantic), "a page is larger than any");
        Check.True(vm.List.Name is { Length: > 0 and <= UffdVmName.MaxLength }, "a VM without a name");
        CheckFigures(vm);
        _ = vm.CountStalledLooks();
        AddEvents(vm, events);
        GoOn(vmm, vm, isTracked);
        CheckFigures(vm);
        TakeOver(vm);
    }

    private static void CheckFigures(VmRecord vm)
    {
        var figures = vm.Figures(UffdOnError.Poison);
        ControlTarget.CheckFigures(figures);
        var pages = (long)UffdVmState.PagesOf(vm.List.Mappings);
        Check.Same(pages, figures.PageCount, "the pages");
        Check.True(figures.RemovedPageCount is >= 0 && figures.RemovedPageCount <= pages && figures.MissingPageCount is >= 0 && figures.MissingPageCount <= pages, "more pages went or are missing than there are");
    }

    /// <summary>Events that a worker has read, and that have not taken effect.</summary>
    private static unsafe void AddEvents(VmRecord vm, ReadOnlySpan<byte> events)
    {
        vm.State.Reads.Begin();
        for (var i = 0; i < events.Length / EventSize; i++)
        {
            var one = events[(i * EventSize)..];
            var mapping = vm.List.Mappings[i % vm.List.Mappings.Count];
            var (from, to) = (AddressOf(one[2..]), AddressOf(one[4..]));
            var length = one[1] * HostPage.Size;
            vm.State.Messages[i] = one[0] switch
            {
                Userfaultfd.UFFD_EVENT_REMAP => new UffdMsg { @event = one[0], remap_from = from, remap_to = to, remap_len = length },
                Userfaultfd.UFFD_EVENT_FORK => new UffdMsg { @event = one[0], fork_ufd = uint.MaxValue },
                Userfaultfd.UFFD_EVENT_PAGEFAULT => new UffdMsg { @event = one[0], pagefault_address = from, pagefault_flags = to },
                _ => new UffdMsg { @event = one[0], remove_start = from, remove_end = from + length },
            };

            ulong AddressOf(ReadOnlySpan<byte> page) => mapping.BaseHostVirtAddr + (BinaryPrimitives.ReadUInt16LittleEndian(page) * HostPage.Size);
        }
    }

    /// <summary>The worker's part: it opens what it was sent, and refuses a VM by a documented error.</summary>
    private static void GoOn(Vmm vmm, VmRecord vm, bool isTracked)
    {
        var list = VmRecord.ReadList(vm.ListFile);
        UffdMappingList.Validate(list.Mappings, ImageLength);
        using var policy = new UffdPolicy { TrackDirty = isTracked };
        var descriptor = Duplicate(vm.Userfaultfd);
        var state = new UffdVmState(UffdVmState.PagesOf(list.Mappings), vm.StateFile);
        try
        {
            using var served = new UffdVm(descriptor, list.Mappings, state, s_source.Value, policy, vm.Features);
            served.Recover();
            Check.True(!state.Reads.IsUnderWay, "events are being read, after the recovery");
            if (vmm is not ForkingVmm forking || vm.Id > MaxForks) return;
            using var scratch = new PageScratch();
            forking.ForkWhile(() => served.Serve(scratch));
            Check.True(served.Error?.Contains("forked", StringComparison.Ordinal) == true, "a fork is not told");
        }
        catch (GuestMemoryException exception)
        {
            Check.Refused(exception);
            descriptor.Dispose();
            state.Dispose();
        }
    }

    /// <summary>The successor's part: what it is given is what the first one had.</summary>
    private static void TakeOver(VmRecord vm)
    {
        using var socket = Duplicate(vm.Socket);
        using var process = Duplicate(vm.Process);
        using var restored = VmRecord.Restore(vm.Id, socket, process, Duplicate(vm.Userfaultfd), Duplicate(vm.StateFile), Duplicate(vm.ListFile), vm.MemoryFile is { } memory ? Duplicate(memory) : null);
        restored.Image = vm.Image;
        using var state = restored.State;
        Check.Same(JsonSerializer.Serialize(vm.List, HostJson.Default.VmList), JsonSerializer.Serialize(restored.List, HostJson.Default.VmList), "the list");
        Check.Same(vm.Figures(UffdOnError.Poison).RemovedPageCount, restored.Figures(UffdOnError.Poison).RemovedPageCount, "the pages that were removed");
    }

    private static SafeDescriptor Duplicate(SafeDescriptor descriptor)
    {
        using var copy = Descriptor.Duplicate(descriptor);
        var number = (int)copy.DangerousGetHandle();
        copy.SetHandleAsInvalid();
        return new SafeDescriptor(number);
    }
}
