using System.Diagnostics;
using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// The VMM's side of the hand-over (Firecracker's guest_memory_from_uffd): memory that is registered with a userfaultfd whose
/// duplicate a page-fault handler holds. It lives until the last of its regions is released; the connection stays open as long,
/// since its end tells the handler that the VMM is gone.
/// </summary>
public sealed class UffdRegistration : IRegionHolder
{
    private static readonly TimeSpan ConnectTimeout = TimeSpan.FromSeconds(10);

    private readonly SafeDescriptor _uffd;
    private readonly SafeDescriptor _socket;
    private int _remaining;

    private UffdRegistration(string socketPath, SafeDescriptor uffd, SafeDescriptor socket, GuestMemoryMmap memory)
    {
        SocketPath = socketPath;
        _uffd = uffd;
        _socket = socket;
        _remaining = memory.Regions.Count;
        Mappings = UffdMappingList.FromMemory(memory);
    }

    /// <summary>For a debugger and for logs: the number of regions, and the handler.</summary>
    public override string ToString() => $"{Mappings.Count} {(Mappings.Count == 1 ? "region" : "regions")} served by the handler at {SocketPath}{(IsLive ? "" : ", not any more")}";

    /// <summary>Where the handler listens.</summary>
    public string SocketPath { get; }

    /// <summary>What was told to the handler.</summary>
    public IReadOnlyList<GuestRegionUffdMapping> Mappings { get; }

    /// <summary>Whether the handler still holds its end of the connection.</summary>
    public bool IsLive
    {
        get
        {
            if (_socket.IsClosed) return false;
            try
            {
                using var lease = new DescriptorLease(_socket);
                Span<PollFd> entry = [new PollFd { fd = lease.Number, events = Poll.POLLIN | Poll.POLLRDHUP }];
                return Poll.Wait(entry, 0) == 0;
            }
            catch (ObjectDisposedException)
            {
                return false;
            }
        }
    }

    bool IRegionHolder.ProvidesPages => true;

    string IRegionHolder.Description => $"the page-fault handler at {SocketPath}";

    /// <summary>
    /// Registers the regions with a new userfaultfd (missing pages and removals) and hands it, with their mapping list, to the
    /// handler that listens at a path. Pages that are present already stay as they are; every other page comes from the handler
    /// from now on. Accesses that are under way end first, which takes a millisecond or some more. On failure everything is as before.
    /// </summary>
    /// <exception cref="GuestMemoryException">UffdDenied, UffdUnsupported, UffdRegisterFailed, UnalignedSize, RegionInUse (by another handler, or by a span), SocketNotFound, NotASocket, ConnectionRefused, SocketPathTooLong, PeerClosed.</exception>
    public static UffdRegistration Connect(string socketPath, GuestMemoryMmap memory, CancellationToken cancellation = default) => Connect(socketPath, memory, sharesMemory: false, cancellation);

    /// <summary>
    /// The same, and <paramref name="sharesMemory"/> hands the memory itself over too, as e2b's fork of Firecracker does: a second
    /// descriptor, of the memfd that all regions are shared mappings of, each at its offset in the image.
    /// </summary>
    /// <exception cref="GuestMemoryException">As above; ValueNotSupported: the regions are no such mappings.</exception>
    public static UffdRegistration Connect(string socketPath, GuestMemoryMmap memory, bool sharesMemory, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(memory);
        CheckSocket(socketPath);
        foreach (var region in memory.Regions) CheckRegion(region);
        var shared = sharesMemory ? SharedFile(memory) : null;
        var uffd = Userfaultfd.Create(Features(memory));
        var socket = UnixSocket.Create(nonBlocking: true);
        MmapRegion[] mappings = [.. memory.Regions.Select(static region => region.GetMmapRegion())];
        var held = default(UffdRegistration);
        try
        {
            var registration = new UffdRegistration(socketPath, uffd, socket, memory);
            MmapRegion.HandOver(mappings, registration, cancellation);
            held = registration;
            foreach (var region in memory.Regions) region.GetMmapRegion().Register(uffd, region.ToString(), Userfaultfd.UFFDIO_REGISTER_MODE_MISSING);
            ConnectSocket(socket, socketPath, cancellation);
            registration.Send(shared, cancellation);
            return registration;
        }
        catch
        {
            uffd.Dispose();
            socket.Dispose();
            if (held is not null) Array.ForEach(mappings, mapping => mapping.RemoveHolder(held));
            throw;
        }
    }

    void IRegionHolder.Release(MmapRegion region)
    {
        region.Withdraw(_uffd);
        if (Interlocked.Decrement(ref _remaining) > 0) return;
        _uffd.Dispose();
        _socket.Dispose();
    }

    internal static void CheckSocket(string path)
    {
        UnixSocket.CheckPath(path);
        var error = FileStatus.TryGet(path, out var status);
        if (error is Errno.ENOENT or Errno.ENOTDIR)
            throw new GuestMemoryException(GuestMemoryError.SocketNotFound, $"There is no socket at {path}. Start the handler first.");
        if (error != 0) throw new SyscallException("statx", error, $"Looking at {path}");
        if ((status.stx_mode & FileStatus.S_IFMT) is not (FileStatus.S_IFSOCK or 0xA000 /* S_IFLNK */))
            throw new GuestMemoryException(GuestMemoryError.NotASocket, $"What is at {path} is not a socket.");
    }

    private static void CheckRegion(GuestMemoryRegion region)
    {
        if (region.IsDisposed) throw new GuestMemoryException(GuestMemoryError.RegionDisposed, $"Region {region} was removed; its memory is no longer mapped.");
        var mapping = region.GetMmapRegion();
        if (!HostPage.IsAligned(mapping.HostAddress, region.PageSize))
            throw new GuestMemoryException(GuestMemoryError.UffdRegisterFailed, $"Region {region} is not aligned to its pages in this process.");
        if (!mapping.IsOwned)
            throw new GuestMemoryException(GuestMemoryError.UffdRegisterFailed, $"Region {region} wraps memory that the caller mapped, which is not registered with userfaultfd here.");
    }

    /// <summary>The memfd that the regions are mappings of.</summary>
    private static SafeHandle SharedFile(GuestMemoryMmap memory)
    {
        var first = memory.Regions[0].GetMmapRegion().File;
        foreach (var (region, mapping) in memory.Regions.Zip(UffdMappingList.FromMemory(memory)))
        {
            var mmap = region.GetMmapRegion();
            if ((mmap.Flags & MapFlags.Shared) == 0 || mmap.File is not { } file || file.Identity != first!.Identity || file.Start != mapping.Offset || (Memfd.Seals(file.File) & Memfd.F_SEAL_SHRINK) == 0)
            {
                throw new GuestMemoryException(GuestMemoryError.ValueNotSupported,
                    $"Region {region} cannot be shared with a handler: it must be a shared mapping of a sealed memfd at offset 0x{mapping.Offset:x}, where it lies in the image; all regions share one memfd.");
            }
        }

        return first!.File;
    }

    private static ulong Features(GuestMemoryMmap memory)
    {
        var features = Userfaultfd.UFFD_FEATURE_EVENT_REMOVE;
        foreach (var region in memory.Regions)
        {
            if (region.PageSize != HostPage.Size) features |= Userfaultfd.UFFD_FEATURE_MISSING_HUGETLBFS;
            else if (region.GetMmapRegion().BackingPath is not null) features |= Userfaultfd.UFFD_FEATURE_MISSING_SHMEM;
        }

        return features;
    }

    private static void ConnectSocket(SafeDescriptor socket, string path, CancellationToken cancellation)
    {
        var started = Stopwatch.StartNew();
        while (true)
        {
            var error = UnixSocket.TryConnect(socket, path);
            switch (error)
            {
                case 0:
                    return;
                case Errno.EAGAIN when started.Elapsed < ConnectTimeout:
                    // The listener's queue is full.
                    cancellation.ThrowIfCancellationRequested();
                    Thread.Sleep(10);
                    continue;
                case Errno.ECONNREFUSED:
                    throw new SyscallException("connect", error, $"Connecting to {path}", GuestMemoryError.ConnectionRefused, "The socket exists, but no handler listens at it: it has ended, or has not started.");
                case Errno.ENOENT:
                    throw new SyscallException("connect", error, $"Connecting to {path}", GuestMemoryError.SocketNotFound, "Start the handler first.");
                case Errno.EACCES:
                    throw new SyscallException("connect", error, $"Connecting to {path}", remedy: "The handler must allow this user (AllowUser, AllowGroup).");
                default:
                    throw new SyscallException("connect", error, $"Connecting to {path}");
            }
        }
    }

    private void Send(SafeHandle? shared, CancellationToken cancellation)
    {
        var json = UffdMappingList.ToJson(Mappings);
        using var uffd = new DescriptorLease(_uffd);
        using var memory = shared is null ? default : new DescriptorLease(shared);
        ReadOnlySpan<int> descriptors = shared is null ? [uffd.Number] : [uffd.Number, memory.Number];
        var started = Stopwatch.StartNew();
        for (var sent = 0; sent < json.Length;)
        {
            var result = UnixSocket.TrySend(_socket, json.AsSpan(sent), sent == 0 ? descriptors : []);
            if (result > 0)
            {
                sent += (int)result;
                continue;
            }

            var error = (int)-result;
            if (error == Errno.EAGAIN && started.Elapsed < ConnectTimeout)
            {
                cancellation.ThrowIfCancellationRequested();
                Thread.Sleep(1);
                continue;
            }

            throw new SyscallException("sendmsg", error, $"Handing the userfaultfd over to {SocketPath}",
                error is Errno.EPIPE or Errno.ECONNRESET ? GuestMemoryError.PeerClosed : error == Errno.EAGAIN ? GuestMemoryError.HandoverTimeout : GuestMemoryError.SyscallFailed,
                error is Errno.EPIPE or Errno.ECONNRESET ? "The handler closed the connection; it may not allow this user (AllowUser, AllowGroup)." : null);
        }
    }
}
