using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>
/// <c>epoll(7)</c>: waits for many descriptors. Each is watched together with an object that owns it. For one thread.
/// </summary>
internal sealed unsafe partial class Epoll : IDisposable
{
    public const int EPOLL_CLOEXEC = 0x80000;
    public const int EPOLL_CTL_ADD = 1;
    public const int EPOLL_CTL_DEL = 2;
    public const uint EPOLLIN = 0x001;
    public const uint EPOLLRDHUP = 0x2000;

    private const int MaxReady = 64;

    // struct epoll_event is packed on x86-64 alone.
    private static readonly int s_stride = RuntimeInformation.ProcessArchitecture == Architecture.X64 ? 12 : 16;

    private readonly SafeDescriptor _descriptor;
    private readonly byte[] _events = GC.AllocateArray<byte>(MaxReady * 16, pinned: true);
    private object?[] _watched = new object?[64];

    public Epoll()
    {
        var number = epoll_create1(EPOLL_CLOEXEC);
        if (number < 0) throw new SyscallException("epoll_create1", Marshal.GetLastPInvokeError(), "Creating an epoll instance");
        _descriptor = new SafeDescriptor(number);
    }

    /// <summary>The size of the kernel's structure and the place of its data, for the test of layouts.</summary>
    public static (int Size, int DataOffset) Layout => (s_stride, s_stride - sizeof(ulong));

    /// <summary>Watches a descriptor for input and for the end of its peer.</summary>
    public void Add(SafeDescriptor descriptor, object owner) => Add(descriptor, owner, EPOLLIN | EPOLLRDHUP);

    /// <summary>Watches a descriptor for the end of its peer alone.</summary>
    public void AddEnd(SafeDescriptor descriptor, object owner) => Add(descriptor, owner, EPOLLRDHUP);

    private void Add(SafeDescriptor descriptor, object owner, uint events)
    {
        var number = descriptor.Number;
        var entry = stackalloc byte[16];
        *(uint*)entry = events;
        *(ulong*)(entry + s_stride - sizeof(ulong)) = (ulong)number;
        if (epoll_ctl(_descriptor.Number, EPOLL_CTL_ADD, number, entry) != 0)
            throw new SyscallException("epoll_ctl", Marshal.GetLastPInvokeError(), "Watching a descriptor");
        if (number >= _watched.Length) Array.Resize(ref _watched, Math.Max(number + 1, _watched.Length * 2));
        _watched[number] = owner;
    }

    /// <summary>
    /// Stops watching. Needed before closing: epoll watches the open file, which another process may hold open.
    /// </summary>
    public void Remove(SafeDescriptor descriptor)
    {
        var entry = stackalloc byte[16];
        _ = epoll_ctl(_descriptor.Number, EPOLL_CTL_DEL, descriptor.Number, entry);
        _watched[descriptor.Number] = null;
    }

    /// <summary>Waits, at most <paramref name="timeoutMilliseconds"/> (-1: for ever); returns how many descriptors are ready. EINTR counts as none.</summary>
    public int Wait(int timeoutMilliseconds)
    {
        fixed (byte* events = _events)
        {
            var ready = epoll_wait(_descriptor.Number, events, MaxReady, timeoutMilliseconds);
            if (ready >= 0) return ready;
        }

        var error = Marshal.GetLastPInvokeError();
        return error == Errno.EINTR ? 0 : throw new SyscallException("epoll_wait", error, "Waiting for descriptors");
    }

    /// <summary>The owner of the n-th ready descriptor; null where it is no longer watched.</summary>
    public object? Owner(int index)
    {
        fixed (byte* events = _events)
            return _watched[*(ulong*)(events + (index * s_stride) + s_stride - sizeof(ulong))];
    }

    public void Dispose() => _descriptor.Dispose();

    [LibraryImport("libc", SetLastError = true)]
    private static partial int epoll_create1(int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int epoll_ctl(int epfd, int op, int fd, void* @event);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int epoll_wait(int epfd, void* events, int maxevents, int timeout);
}
