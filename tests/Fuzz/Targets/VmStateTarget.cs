using System.Buffers.Binary;
using System.Runtime.InteropServices;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Fuzz.Targets;

/// <summary>
/// The state of a VM as a predecessor left it, which a supervisor reads and a worker goes on with. The first byte says whether writes
/// are tracked, and who comes first; then pieces: an offset in the state (2 bytes), a length (1 byte), and so many bytes. What no piece
/// says is zero. An address in an event or in what the kernel found is an offset in the VM's memory under 16 bits of ones.
/// </summary>
internal static class VmStateTarget
{
    private const ulong Pages = 96;
    private const ulong FirstPages = 32;
    private const int AddressMark = 0xffff;
    private const int AddressBits = 48;

    // Bytes that lie behind the state in its file, and must stay as they are.
    private const int Guard = 4096;

    private static readonly Lazy<Vm> s_vm = new(static () => new Vm());

    public static void Run(byte[] input)
    {
        if (input.Length < 1) return;
        var content = new byte[(int)UffdVmState.SizeOf(Pages) + Guard];
        var vm = s_vm.Value;
        Apply(input.AsSpan(1), content.AsSpan(0, content.Length - Guard));
        // A state without it is refused.
        UffdVmState.WriteHeader(content.AsSpan(UffdVmState.HeaderOffset, UffdVmState.HeaderSize));
        SetAddresses(content.AsSpan(0, UffdVmState.HistogramOffset), vm.Mappings[0].BaseHostVirtAddr);
        Check.ClosesEverything(() =>
        {
            using var file = SharedJsonTarget.MakeFile(content);
            var isTracked = (input[0] & 1) != 0;
            if ((input[0] & 2) != 0) Watch(vm, file, take: (input[0] & 4) != 0);
            Serve(vm, file, isTracked);
            Watch(vm, file, take: (input[0] & 8) != 0);
            CheckGuard(file);
        });
    }

    private static void Apply(ReadOnlySpan<byte> pieces, Span<byte> content)
    {
        while (pieces.Length >= 3)
        {
            var offset = BinaryPrimitives.ReadUInt16LittleEndian(pieces) % content.Length;
            var bytes = pieces.Slice(3, Math.Min(pieces[2], pieces.Length - 3));
            bytes[..Math.Min(bytes.Length, content.Length - offset)].CopyTo(content[offset..]);
            pieces = pieces[(3 + bytes.Length)..];
        }
    }

    private static void SetAddresses(Span<byte> content, ulong address)
    {
        foreach (ref var word in MemoryMarshal.Cast<byte, ulong>(content))
        {
            if (word >> AddressBits == AddressMark) word = address + (ulong)((long)(word << (64 - AddressBits)) >> (64 - AddressBits));
        }
    }

    /// <summary>The worker's part.</summary>
    private static void Serve(Vm vm, SafeDescriptor file, bool isTracked)
    {
        using var userfaultfd = Descriptor.Duplicate(vm.Userfaultfd);
        using var lease = new DescriptorLease(userfaultfd);
        var state = new UffdVmState(Pages, file);
        using var policy = new UffdPolicy { TrackDirty = isTracked };
        // It closes its descriptor, which is the duplicate's.
        var descriptor = new SafeDescriptor(lease.Number);
        userfaultfd.SetHandleAsInvalid();
        using var served = new UffdVm(descriptor, vm.Mappings, state, vm.Source, policy);
        served.Recover();
        served.RecordWhatCame();
        CheckFigures(state);
        Check.Same((0UL, 0UL), state.Opening, "what is being opened, after the recovery");
        Check.True(!state.Reads.IsUnderWay, "events are being read, after the recovery");
    }

    /// <summary>The supervisor's part.</summary>
    private static void Watch(Vm vm, SafeDescriptor file, bool take)
    {
        using var state = new UffdVmState(Pages, file);
        CheckFigures(state);
        var tracker = new WriteTracker(state, vm.Mappings, vm.Userfaultfd, Environment.ProcessId);
        if (!Check.TryParse(() => tracker.TryGet(take, out var bitmaps) ? bitmaps.ToArray() : [], out var written, GuestMemoryError.UffdUnsupported)) return;
        foreach (var bitmap in written) DirtyLogTarget.CheckBitmap(bitmap);
        if (!take) return;
        tracker.Confirm();
        Check.Same(0L, state.Taken.Count(), "the marks that are left after they were confirmed");
    }

    private static void CheckFigures(UffdVmState state)
    {
        var figures = state.Figures(Environment.ProcessId, null);
        ControlTarget.CheckFigures(figures);
        Check.Same((long)Pages, figures.PageCount, "the pages");
        Check.True(figures.PresentPageCount is >= 0 and <= (long)Pages && figures.RemovedPageCount is >= 0 and <= (long)Pages && figures.MissingPageCount is >= 0 and <= (long)Pages, "more pages came, went or are missing than there are");
        Check.True(figures.LatencyP50 >= TimeSpan.Zero && figures.LatencyMax >= TimeSpan.Zero, "a latency below zero");
    }

    private static void CheckGuard(SafeDescriptor file)
    {
        using var handle = new SafeFileHandle(file.Number, ownsHandle: false);
        var behind = new byte[Guard];
        Check.Same(Guard, RandomAccess.Read(handle, behind, (long)UffdVmState.SizeOf(Pages)), "the bytes behind the state");
        Check.True(!behind.AsSpan().ContainsAnyExcept((byte)0), "something was written behind the state");
    }

    /// <summary>Memory of this process that is registered with a userfaultfd, and touched by no one.</summary>
    private sealed class Vm
    {
        private readonly MmapRegion _memory = new MmapRegionBuilder(Pages * HostPage.Size).Build();

        public Vm()
        {
            Userfaultfd = Core.Interop.Userfaultfd.Create(Core.Interop.Userfaultfd.UFFD_FEATURE_EVENT_REMOVE);
            using var lease = _memory.Lease();
            Check.Same(0, Core.Interop.Userfaultfd.TryRegister(Userfaultfd.Number, lease.Address, lease.Length, Core.Interop.Userfaultfd.UFFDIO_REGISTER_MODE_MISSING), "registering the memory");
            var address = (ulong)lease.Address;
            Mappings =
            [
                new GuestRegionUffdMapping(address, FirstPages * HostPage.Size, 0, HostPage.Size),
                new GuestRegionUffdMapping(address + (FirstPages * HostPage.Size), (Pages - FirstPages) * HostPage.Size, FirstPages * HostPage.Size, HostPage.Size),
            ];
            var image = new GuestRegionMmap(new MmapRegionBuilder(Pages * HostPage.Size).Build(), new GuestAddress(0));
            Source = new MemorySource(GuestMemoryMmap.FromRegions([image]));
        }

        public SafeDescriptor Userfaultfd { get; }

        public IReadOnlyList<GuestRegionUffdMapping> Mappings { get; }

        public PageSource Source { get; }
    }
}
