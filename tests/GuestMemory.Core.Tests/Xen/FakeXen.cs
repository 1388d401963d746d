using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Tests;

/// <summary>
/// Xen's devices without a Xen: a memfd, whose page N is the page of grant reference N, and of foreign frame N past the first one asked for.
/// The requests come as they would go to the kernel, and are kept as bytes; only the answers are made up. The real ones are tried in
/// tests/Integration/Xen.
/// </summary>
internal sealed unsafe class FakeXen : XenCalls, IDisposable
{
    private readonly Dictionary<ulong, uint> _granted = [];
    private readonly Lock _lock = new();

    public FakeXen(ulong size)
    {
        using var memfd = Memfd.CreateSealed("fake_xen", (long)HostPage.RoundUp(Math.Max(size, 1), HostPage.Size), 0);
        Device = Descriptor.Duplicate(memfd);
    }

    public SafeFileHandle Device { get; }

    /// <summary>Whether requests are kept.</summary>
    public bool Records { get; init; } = true;

    /// <summary>Each request: its number, and the bytes of its structure as they came.</summary>
    public List<(uint Request, byte[] Bytes)> Requests { get; } = [];

    /// <summary>The frames of each request for foreign ones.</summary>
    public List<ulong[]> Frames { get; } = [];

    /// <summary>The pauses between requests for frames that are paged out.</summary>
    public List<TimeSpan> Pauses { get; } = [];

    /// <summary>The request that fails, counted from here on: 1 is the next; 0 none. It fails once.</summary>
    public int FailAt { get; set; }

    /// <summary>The error number of a request that fails.</summary>
    public int Error { get; set; } = Errno.EINVAL;

    /// <summary>Whether the request that fails is answered after all, and the mmap(2) that follows fails.</summary>
    public bool FailMmap { get; set; }

    /// <summary>What happens to a frame: 0, or the negated error number.</summary>
    public Func<ulong, int>? FrameError { get; set; }

    /// <summary>Is called when a request comes, before it is answered.</summary>
    public Action<uint>? OnRequest { get; set; }

    /// <summary>Is called by each pause.</summary>
    public Action? OnPause { get; set; }

    /// <summary>The grants that are mapped.</summary>
    public int Granted
    {
        get
        {
            lock (_lock) return _granted.Count;
        }
    }

    public override int Ioctl(SafeHandle device, uint request, void* argument)
    {
        Assert.False(device.IsClosed);
        OnRequest?.Invoke(request);
        lock (_lock)
        {
            if (Records) Requests.Add((request, new Span<byte>(argument, SizeOf(request, argument)).ToArray()));
            // What was granted can always be given back.
            var fails = request != XenApi.IOCTL_GNTDEV_UNMAP_GRANT_REF && FailAt > 0 && --FailAt == 0;
            if (fails && !FailMmap) return Error;
            return request switch
            {
                XenApi.IOCTL_PRIVCMD_MMAPBATCH_V2 => Map((PrivcmdMmapbatchV2*)argument),
                XenApi.IOCTL_GNTDEV_MAP_GRANT_REF => Map((IoctlGntdevMapGrantRef*)argument, fails),
                _ => Unmap((IoctlGntdevUnmapGrantRef*)argument),
            };
        }
    }

    public override void Pause(TimeSpan time, CancellationToken cancellation)
    {
        cancellation.ThrowIfCancellationRequested();
        Pauses.Add(time);
        OnPause?.Invoke();
    }

    /// <summary>How many mappings of the memfd this process has.</summary>
    public static int Mappings() => File.ReadLines("/proc/self/maps").Count(static line => line.Contains("memfd:fake_xen", StringComparison.Ordinal));

    public void Dispose() => Device.Dispose();

    private static int SizeOf(uint request, void* argument) => request switch
    {
        XenApi.IOCTL_PRIVCMD_MMAPBATCH_V2 => 32,
        XenApi.IOCTL_GNTDEV_MAP_GRANT_REF => 16 + (8 * *(int*)argument),
        XenApi.IOCTL_GNTDEV_UNMAP_GRANT_REF => 16,
        _ => throw new InvalidOperationException($"An unknown request, 0x{request:x}."),
    };

    private int Map(PrivcmdMmapbatchV2* batch)
    {
        if (Records) Frames.Add(new Span<ulong>(batch->arr, (int)batch->num).ToArray());
        var paged = false;
        for (var i = 0; i < (int)batch->num; i++)
        {
            Assert.Equal(0, batch->err[i]);
            batch->err[i] = FrameError?.Invoke(batch->arr[i]) ?? 0;
            paged |= batch->err[i] == -Errno.ENOENT;
        }

        return paged ? Errno.ENOENT : 0;
    }

    private int Map(IoctlGntdevMapGrantRef* request, bool fails)
    {
        // The place of the first page; where mmap(2) is to fail, one that no mapping can begin at.
        request->index = (request->refs.@ref * HostPage.Size) + (fails ? 1UL : 0);
        CollectionsMarshal.GetValueRefOrAddDefault(_granted, request->index, out _)++;
        return 0;
    }

    private int Unmap(IoctlGntdevUnmapGrantRef* request)
    {
        if (!_granted.TryGetValue(request->index, out var times)) return Errno.ENOENT;
        if (times == 1) _granted.Remove(request->index);
        else _granted[request->index] = times - 1;
        return 0;
    }
}
