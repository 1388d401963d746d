using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>
/// <c>userfaultfd(2)</c> and its ioctls (<c>ioctl_userfaultfd(2)</c>). The Try methods return 0 or the error number and allocate
/// nothing: the fault loop calls them.
/// </summary>
internal static unsafe partial class Userfaultfd
{
    public const uint UFFDIO_API = 0xC018AA3F;
    public const uint UFFDIO_REGISTER = 0xC020AA00;
    public const uint UFFDIO_UNREGISTER = 0x8010AA01;
    public const uint UFFDIO_WAKE = 0x8010AA02;
    public const uint UFFDIO_COPY = 0xC028AA03;
    public const uint UFFDIO_ZEROPAGE = 0xC020AA04;
    public const uint UFFDIO_WRITEPROTECT = 0xC018AA06;
    public const uint UFFDIO_CONTINUE = 0xC020AA07;
    public const uint UFFDIO_POISON = 0xC020AA08;
    public const uint USERFAULTFD_IOC_NEW = 0xAA00;

    public const ulong UFFD_API = 0xAA;
    public const int UFFD_USER_MODE_ONLY = 1;
    public const int O_CLOEXEC = 0x80000;
    public const int O_NONBLOCK = 0x800;
    public const int O_RDWR = 2;

    public const ulong UFFDIO_REGISTER_MODE_MISSING = 1;
    public const ulong UFFDIO_REGISTER_MODE_WP = 2;
    public const ulong UFFDIO_REGISTER_MODE_MINOR = 4;

    /// <summary>Does not wake waiting threads; UFFDIO_ZEROPAGE has the same flag.</summary>
    public const ulong UFFDIO_COPY_MODE_DONTWAKE = 1;
    public const ulong UFFDIO_COPY_MODE_WP = 2;
    public const ulong UFFDIO_CONTINUE_MODE_WP = 2;
    public const ulong UFFDIO_WRITEPROTECT_MODE_WP = 1;

    public const byte UFFD_EVENT_PAGEFAULT = 0x12;
    public const byte UFFD_EVENT_FORK = 0x13;
    public const byte UFFD_EVENT_REMAP = 0x14;
    public const byte UFFD_EVENT_REMOVE = 0x15;
    public const byte UFFD_EVENT_UNMAP = 0x16;

    public const ulong UFFD_PAGEFAULT_FLAG_WRITE = 1;
    public const ulong UFFD_PAGEFAULT_FLAG_WP = 2;
    public const ulong UFFD_PAGEFAULT_FLAG_MINOR = 4;

    /// <summary>Feature names by bit, as the kernel's header has them without the prefix UFFD_FEATURE_.</summary>
    public static readonly string[] FeatureNames =
    [
        "PAGEFAULT_FLAG_WP", "EVENT_FORK", "EVENT_REMAP", "EVENT_REMOVE", "MISSING_HUGETLBFS", "MISSING_SHMEM", "EVENT_UNMAP",
        "SIGBUS", "THREAD_ID", "MINOR_HUGETLBFS", "MINOR_SHMEM", "EXACT_ADDRESS", "WP_HUGETLBFS_SHMEM", "WP_UNPOPULATED",
        "POISON", "WP_ASYNC", "MOVE",
    ];

    public const ulong UFFD_FEATURE_PAGEFAULT_FLAG_WP = 1 << 0;
    public const ulong UFFD_FEATURE_EVENT_REMOVE = 1 << 3;
    public const ulong UFFD_FEATURE_MISSING_HUGETLBFS = 1 << 4;
    public const ulong UFFD_FEATURE_MISSING_SHMEM = 1 << 5;
    public const ulong UFFD_FEATURE_MINOR_HUGETLBFS = 1 << 9;
    public const ulong UFFD_FEATURE_MINOR_SHMEM = 1 << 10;
    public const ulong UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12;
    public const ulong UFFD_FEATURE_WP_UNPOPULATED = 1 << 13;
    public const ulong UFFD_FEATURE_POISON = 1 << 14;
    public const ulong UFFD_FEATURE_WP_ASYNC = 1 << 15;

    /// <summary>The device that grants the right to create a userfaultfd by its file permissions (Linux 6.1 and later).</summary>
    public const string DevicePath = "/dev/userfaultfd";

    // A page of which nothing can be copied; for TryProbeRange.
    private static readonly Lazy<SafeMapping> s_unreadable = new(static () =>
        Mman.Map((nuint)HostPage.Size, Mman.PROT_NONE, Mman.MAP_PRIVATE | Mman.MAP_ANONYMOUS | Mman.MAP_NORESERVE, -1, 0, "Mapping a page without rights"));

    /// <summary>The number of userfaultfd(2).</summary>
    public static nint SyscallNumber => RuntimeInformation.ProcessArchitecture switch
    {
        Architecture.X64 => 323,
        Architecture.Arm64 => 282,
        var other => throw new GuestMemoryException(GuestMemoryError.UffdUnsupported, $"GuestMemory knows no userfaultfd system call number for {other}. x86-64 and aarch64 are supported."),
    };

    /// <summary>
    /// Creates a userfaultfd that also serves the kernel's own faults (KVM), non-blocking, with the features asked for: through
    /// /dev/userfaultfd, and through the system call only where that device does not exist, as Firecracker does.
    /// </summary>
    public static SafeDescriptor Create(ulong features)
    {
        var number = FromDevice();
        if (number < 0) number = (int)syscall(SyscallNumber, O_CLOEXEC | O_NONBLOCK);
        if (number < 0)
        {
            var error = Marshal.GetLastPInvokeError();
            throw error switch
            {
                Errno.EPERM => new SyscallException("userfaultfd", error, "Creating a userfaultfd", GuestMemoryError.UffdDenied,
                    $"{DevicePath} does not exist here and the system call needs CAP_SYS_PTRACE or 'sysctl vm.unprivileged_userfaultfd=1'."),
                Errno.ENOSYS => new SyscallException("userfaultfd", error, "Creating a userfaultfd", GuestMemoryError.UffdUnsupported,
                    "The kernel is built without CONFIG_USERFAULTFD."),
                _ => new SyscallException("userfaultfd", error, "Creating a userfaultfd"),
            };
        }

        var descriptor = new SafeDescriptor(number);
        try
        {
            Enable(number, features);
        }
        catch
        {
            descriptor.Dispose();
            throw;
        }

        return descriptor;
    }

    /// <summary>Enables features of a userfaultfd that was just created; only the first call on it counts.</summary>
    /// <exception cref="SyscallException">UffdUnsupported: this kernel lacks one of them.</exception>
    public static void Enable(int uffd, ulong features)
    {
        var api = new UffdioApi { api = UFFD_API, features = features };
        if (ioctl(uffd, UFFDIO_API, &api) == 0) return;
        throw new SyscallException("ioctl(UFFDIO_API)", Marshal.GetLastPInvokeError(), $"Enabling userfaultfd features 0x{features:x}", GuestMemoryError.UffdUnsupported,
            "This kernel lacks one of them.");
    }

    /// <summary>All features of this kernel, read from a temporary descriptor; 0 or the error number.</summary>
    public static int TryProbe(out ulong features)
    {
        features = 0;
        int number;
        try
        {
            number = FromDevice();
        }
        catch (SyscallException exception)
        {
            return exception.ErrorCode;
        }

        if (number < 0) number = (int)syscall(SyscallNumber, O_CLOEXEC | O_NONBLOCK);
        if (number < 0) return Marshal.GetLastPInvokeError();
        using var descriptor = new SafeDescriptor(number);
        var api = new UffdioApi { api = UFFD_API };
        if (ioctl(number, UFFDIO_API, &api) != 0) return Marshal.GetLastPInvokeError();
        features = api.features;
        return 0;
    }

    public static int TryRegister(int uffd, nint start, nuint length, ulong mode)
    {
        var register = new UffdioRegister { range = { start = (ulong)start, len = length }, mode = mode };
        return ioctl(uffd, UFFDIO_REGISTER, &register) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    /// <summary>Has a range be as memory that no userfaultfd watches, and wakes the threads that wait for it.</summary>
    public static int TryUnregister(int uffd, ulong start, ulong length)
    {
        var range = new UffdioRange { start = start, len = length };
        return ioctl(uffd, UFFDIO_UNREGISTER, &range) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    /// <summary>
    /// Asks about a range and changes nothing: it has the kernel copy from a page that cannot be read. ENOENT: the memory is not registered (any more);
    /// ESRCH: it is gone with its process; EINVAL: a mode that it is not registered for; anything else: it is registered.
    /// </summary>
    /// <param name="uffd">The userfaultfd.</param>
    /// <param name="start">The first address.</param>
    /// <param name="length">A page of the range, in bytes.</param>
    /// <param name="mode">UFFDIO_COPY_MODE flags to ask about.</param>
    public static int TryProbeRange(int uffd, ulong start, ulong length, ulong mode = 0) => TryCopy(uffd, start, (byte*)s_unreadable.Value.Address, length, mode, out _);

    public static int TryWake(int uffd, ulong start, ulong length)
    {
        var range = new UffdioRange { start = start, len = length };
        return ioctl(uffd, UFFDIO_WAKE, &range) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    /// <summary>Fills a missing range and wakes the threads that wait for it. <paramref name="copied"/>: bytes done, also where it stops early.</summary>
    public static int TryCopy(int uffd, ulong destination, byte* source, ulong length, ulong mode, out long copied)
    {
        var copy = new UffdioCopy { dst = destination, src = (ulong)source, len = length, mode = mode };
        var error = ioctl(uffd, UFFDIO_COPY, &copy) == 0 ? 0 : Marshal.GetLastPInvokeError();
        copied = copy.copy;
        return error;
    }

    /// <summary>Fills a missing range with zeros and wakes the threads that wait for it. <paramref name="done"/>: as with <see cref="TryCopy"/>.</summary>
    public static int TryZero(int uffd, ulong start, ulong length, ulong mode, out long done) => FillWithout(uffd, UFFDIO_ZEROPAGE, start, length, mode, out done);

    /// <summary>Maps a range that is in the page cache already and wakes the threads that wait for it.</summary>
    public static int TryContinue(int uffd, ulong start, ulong length, ulong mode) => FillWithout(uffd, UFFDIO_CONTINUE, start, length, mode, out _);

    /// <summary>Makes a range writable again and wakes the threads that wait to write.</summary>
    public static int TryUnprotect(int uffd, ulong start, ulong length) => WriteProtect(uffd, start, length, 0);

    /// <summary>Write-protects the present pages of a range: the next write to each is a fault.</summary>
    public static int TryProtect(int uffd, ulong start, ulong length) => WriteProtect(uffd, start, length, UFFDIO_WRITEPROTECT_MODE_WP);

    /// <summary>The features that a userfaultfd was opened with, from /proc; 0 where they are not listed there.</summary>
    /// <exception cref="GuestMemoryException">UffdUnsupported: /proc cannot be read; SyscallFailed: no descriptor is left to read it with.</exception>
    public static ulong FeaturesOf(int uffd)
    {
        string? line;
        try
        {
            // "API:\taa:FEATURES:IOCTLS", hexadecimal.
            line = File.ReadLines($"/proc/self/fdinfo/{uffd}").FirstOrDefault(text => text.StartsWith("API:", StringComparison.Ordinal));
        }
        catch (IOException exception) when (exception.HResult is Errno.EMFILE or Errno.ENFILE)
        {
            throw new SyscallException("open", exception.HResult, "Reading what a userfaultfd can do", remedy: "Raise the limit of open files ('ulimit -n').");
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new GuestMemoryException(GuestMemoryError.UffdUnsupported, $"What a userfaultfd can do cannot be read from /proc: {exception.Message}", exception);
        }

        var parts = line?.Split(':') ?? [];
        return parts.Length == 4 && ulong.TryParse(parts[2], System.Globalization.NumberStyles.AllowHexSpecifier, System.Globalization.CultureInfo.InvariantCulture, out var features) ? features : 0;
    }

    /// <summary>Poisons a missing range: an access raises SIGBUS (EFAULT in the kernel's own accesses) instead of waiting.</summary>
    public static int TryPoison(int uffd, ulong start, ulong length) => TryPoison(uffd, start, length, out _);

    /// <summary>The same. <paramref name="done"/>: as with <see cref="TryCopy"/>.</summary>
    public static int TryPoison(int uffd, ulong start, ulong length, out long done) => FillWithout(uffd, UFFDIO_POISON, start, length, 0, out done);

    /// <summary>
    /// Reads events without waiting; returns their number, or the negated error number. Before Linux 6.10 it waits all the same where
    /// another process made the descriptor blocking.
    /// </summary>
    /// <param name="uffd">The userfaultfd.</param>
    /// <param name="messages">Where they are read to.</param>
    /// <param name="capacity">How many at most.</param>
    /// <param name="knowsNoWait">Whether the kernel knows RWF_NOWAIT here, which a first read with true finds out.</param>
    public static int TryRead(int uffd, UffdMsg* messages, int capacity, ref bool knowsNoWait)
    {
        var length = (nuint)(capacity * sizeof(UffdMsg));
        nint bytes;
        if (knowsNoWait)
        {
            bytes = Descriptor.TryReadNoWait(uffd, messages, length);
            if (bytes is -Errno.EOPNOTSUPP or -Errno.ENOSYS or -Errno.EPERM) knowsNoWait = false;
            else return Count(bytes);
        }

        bytes = read(uffd, messages, length);
        return bytes >= 0 ? Count(bytes) : -Marshal.GetLastPInvokeError();

        static int Count(nint bytes) => bytes >= 0 ? (int)bytes / sizeof(UffdMsg) : (int)bytes;
    }

    /// <summary>Whether a received descriptor is a userfaultfd.</summary>
    public static bool IsUserfaultfd(int descriptor) =>
        string.Equals(new FileInfo($"/proc/self/fd/{descriptor}").LinkTarget, "anon_inode:[userfaultfd]", StringComparison.Ordinal);

    /// <summary>Makes a received descriptor non-blocking: poll(2) reports only POLLERR for a blocking userfaultfd.</summary>
    public static void SetNonBlocking(int descriptor)
    {
        if (fcntl(descriptor, 4 /* F_SETFL */, O_NONBLOCK) != 0)
            throw new SyscallException("fcntl(F_SETFL)", Marshal.GetLastPInvokeError(), "Making a userfaultfd non-blocking");
    }

    private static int FromDevice()
    {
        var device = open(DevicePath, O_RDWR | O_CLOEXEC);
        if (device < 0)
        {
            var error = Marshal.GetLastPInvokeError();
            if (error == Errno.ENOENT) return -1;
            throw new SyscallException("open", error, $"Opening {DevicePath}", GuestMemoryError.UffdDenied,
                $"Give this user access: 'setfacl -m u:USER:rw {DevicePath}', or run as root.");
        }

        using var opened = new SafeDescriptor(device);
        var number = ioctl(device, USERFAULTFD_IOC_NEW, (void*)(O_CLOEXEC | O_NONBLOCK));
        return number >= 0 ? number : throw new SyscallException("ioctl(USERFAULTFD_IOC_NEW)", Marshal.GetLastPInvokeError(), "Creating a userfaultfd");
    }

    private static int WriteProtect(int uffd, ulong start, ulong length, ulong mode)
    {
        var protect = new UffdioWriteprotect { range = { start = start, len = length }, mode = mode };
        return ioctl(uffd, UFFDIO_WRITEPROTECT, &protect) == 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    private static int FillWithout(int uffd, uint request, ulong start, ulong length, ulong mode, out long done)
    {
        var zeropage = new UffdioZeropage { range = { start = start, len = length }, mode = mode };
        var error = ioctl(uffd, request, &zeropage) == 0 ? 0 : Marshal.GetLastPInvokeError();
        done = zeropage.zeropage;
        return error;
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint syscall(nint number, nint flags);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string pathname, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int ioctl(int fd, nuint request, void* argument);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fcntl(int fd, int cmd, int arg);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint read(int fd, void* buf, nuint count);
}
