using System.Globalization;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Xen;

/// <summary>
/// Maps frames of another domain (privcmd's IOCTL_PRIVCMD_MMAPBATCH_V2): all of them, or none. The ioctl reports an error for each frame
/// beside its own, and may succeed where frames failed; upstream looks at the ioctl's alone, and an access to such a frame then ends the
/// process by SIGBUS.
/// </summary>
internal sealed unsafe class ForeignFrames
{
    private const string Function = "ioctl(IOCTL_PRIVCMD_MMAPBATCH_V2)";
    private const int MaxNamed = 8;

    // A pager brings a frame in within milliseconds, unless it waits for a disk.
    private static readonly TimeSpan s_firstPause = TimeSpan.FromMilliseconds(0.1);
    private static readonly TimeSpan s_longestPause = TimeSpan.FromMilliseconds(100);
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(10);

    private readonly XenCalls _calls;
    private readonly SafeFileHandle _device;
    private readonly ushort _domain;
    private readonly nint _address;
    private readonly ulong[] _frames;
    private readonly int[] _errors;

    private ForeignFrames(XenCalls calls, SafeFileHandle device, ushort domain, ulong firstFrame, int count, nint address)
    {
        _calls = calls;
        _device = device;
        _domain = domain;
        _address = address;
        _frames = new ulong[count];
        for (var i = 0; i < count; i++) _frames[i] = firstFrame + (ulong)i;
        _errors = new int[count];
    }

    /// <summary>Maps frames one behind the other.</summary>
    /// <param name="calls">The device's answers.</param>
    /// <param name="device">privcmd.</param>
    /// <param name="domain">The domain whose frames they are.</param>
    /// <param name="firstFrame">The first frame: its guest physical address, by 4096.</param>
    /// <param name="size">The bytes; what is left of the last page is mapped with it.</param>
    /// <param name="protection">The protection.</param>
    /// <param name="flags">The MAP_ flags; Shared is added.</param>
    /// <param name="cancellation">Ends the wait for frames that are paged out.</param>
    /// <exception cref="SyscallException">FrameNotMapped, with the guest address of the first frame that failed; DomainNotFound; what mmap(2) or the ioctl refused.</exception>
    public static SafeMapping Map(XenCalls calls, SafeFileHandle device, ushort domain, ulong firstFrame, ulong size, MemoryProtection protection, MapFlags flags, CancellationToken cancellation)
    {
        var count = XenPage.Count(size);
        using var lease = new DescriptorLease(device);
        var mapping = Mman.Map((nuint)(count * XenPage.Size), (int)protection, (int)(flags | MapFlags.Shared), lease.Number, 0, $"Mapping {count} frames of domain {domain}");
        try
        {
            new ForeignFrames(calls, device, domain, firstFrame, (int)count, mapping.Address).Fill(cancellation);
            return mapping;
        }
        catch
        {
            // What was mapped of them goes with the addresses.
            mapping.Dispose();
            throw;
        }
    }

    /// <summary>Maps frames one behind the other over a part of a mapping, whose owner unmaps them with it, also where this fails.</summary>
    /// <exception cref="SyscallException">As <see cref="Map"/>.</exception>
    public static void MapOver(nint address, XenCalls calls, SafeFileHandle device, ushort domain, ulong firstFrame, int count, MemoryProtection protection, MapFlags flags, CancellationToken cancellation)
    {
        using var lease = new DescriptorLease(device);
        var error = Mman.TryReplace(address, (nuint)((ulong)count * XenPage.Size), (int)protection, (int)(flags | MapFlags.Shared), lease.Number, 0);
        if (error != 0) throw new SyscallException("mmap", error, $"Mapping {count} frames of domain {domain}");
        new ForeignFrames(calls, device, domain, firstFrame, count, address).Fill(cancellation);
    }

    /// <summary>Which frames one behind the other are there; those that are paged out are.</summary>
    /// <exception cref="SyscallException">DomainNotFound; what mmap(2) or the ioctl refused.</exception>
    public static bool[] Probe(XenCalls calls, SafeFileHandle device, ushort domain, ulong firstFrame, int count)
    {
        using var lease = new DescriptorLease(device);
        using var mapping = Mman.Map((nuint)((ulong)count * XenPage.Size), Mman.PROT_READ, Mman.MAP_SHARED, lease.Number, 0, $"Looking for {count} frames of domain {domain}");
        var frames = new ForeignFrames(calls, device, domain, firstFrame, count, mapping.Address);
        frames.Request(0, count);
        if (frames.IsDomainMissing) throw frames.NotMapped(0);
        return Array.ConvertAll(frames._errors, static error => error is 0 or -Errno.ENOENT);
    }

    /// <summary>Whether every frame failed since there is no such domain.</summary>
    private bool IsDomainMissing => _errors.AsSpan().IndexOfAnyExcept(-Errno.ESRCH) < 0;

    private void Fill(CancellationToken cancellation)
    {
        // The kernel takes the whole mapping first, and parts of it that are not mapped yet afterwards.
        Request(0, _frames.Length);
        var (pause, waited) = (s_firstPause, TimeSpan.Zero);
        while (waited < s_patience && Array.IndexOf(_errors, -Errno.ENOENT) >= 0)
        {
            // The first request has told the domain's pager which frames are wanted.
            _calls.Pause(pause, cancellation);
            waited += pause;
            pause = pause * 2 < s_longestPause ? pause * 2 : s_longestPause;
            RequestPagedOut();
        }

        var failed = Array.FindIndex(_errors, static error => error != 0);
        if (failed >= 0) throw NotMapped(failed);
    }

    private void RequestPagedOut()
    {
        for (int from = 0, to; from < _errors.Length; from = to)
        {
            to = from + 1;
            if (_errors[from] != -Errno.ENOENT) continue;
            while (to < _errors.Length && _errors[to] == -Errno.ENOENT) to++;
            Request(from, to - from);
        }
    }

    private void Request(int from, int count)
    {
        int error;
        fixed (ulong* frames = _frames)
        fixed (int* errors = _errors)
        {
            new Span<int>(errors + from, count).Clear();
            var batch = new PrivcmdMmapbatchV2
            {
                num = (uint)count,
                dom = _domain,
                addr = (ulong)_address + ((ulong)from * XenPage.Size),
                arr = frames + from,
                err = errors + from,
            };
            error = _calls.Ioctl(_device, XenApi.IOCTL_PRIVCMD_MMAPBATCH_V2, &batch);
        }

        // ENOENT says that there is one among the errors of the frames.
        if (error == 0 || (error == Errno.ENOENT && _errors.AsSpan(from, count).Contains(-Errno.ENOENT))) return;
        throw new SyscallException(Function, error, $"Mapping {count} frames of domain {_domain} from frame 0x{_frames[from]:x} on",
            remedy: error == Errno.EPERM ? "Only a domain with the right to, as domain 0, maps the memory of others." : null);
    }

    private SyscallException NotMapped(int first)
    {
        var frame = _frames[first];
        if (IsDomainMissing)
            return new SyscallException(Function, Errno.ESRCH, $"Mapping memory of domain {_domain}", GuestMemoryError.DomainNotFound, "There is no such domain on this host.");
        var failed = Enumerable.Range(0, _errors.Length).Where(i => _errors[i] != 0).ToArray();
        var names = string.Join(", ", failed.Take(MaxNamed).Select(i => string.Create(CultureInfo.InvariantCulture, $"0x{_frames[i]:x}")));
        var why = _errors[first] == -Errno.ENOENT ? "They are paged out, and did not come back in time." : "The domain has no memory there, or this domain may not map it.";
        return new SyscallException(Function, -_errors[first], $"Mapping frame 0x{frame:x} (guest address 0x{frame * XenPage.Size:x}) of domain {_domain}", GuestMemoryError.FrameNotMapped,
            $"Frames that failed: {failed.Length} of {_frames.Length}, {names}{(failed.Length > MaxNamed ? ", ..." : "")}. {why}") { Address = frame * XenPage.Size };
    }
}
