using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>Memory mappings: <c>mmap(2)</c>, <c>munmap(2)</c>, <c>mprotect(2)</c>, <c>madvise(2)</c>, and <c>memcpy(3)</c> between them.</summary>
internal static unsafe partial class Mman
{
    public const int PROT_NONE = 0;
    public const int PROT_READ = 1;
    public const int PROT_WRITE = 2;
    public const int PROT_EXEC = 4;

    public const int MAP_SHARED = 0x01;
    public const int MAP_PRIVATE = 0x02;
    public const int MAP_FIXED = 0x10;
    public const int MAP_ANONYMOUS = 0x20;
    public const int MAP_NORESERVE = 0x4000;
    public const int MAP_POPULATE = 0x8000;
    public const int MAP_HUGETLB = 0x40000;
    public const int MAP_HUGE_SHIFT = 26;

    public const int MADV_WILLNEED = 3;
    public const int MADV_DONTNEED = 4;
    public const int MADV_REMOVE = 9;
    public const int MADV_MERGEABLE = 12;
    public const int MADV_DONTDUMP = 16;
    public const int MADV_PAGEOUT = 21;
    public const int MADV_POPULATE_READ = 22;
    public const int MADV_POPULATE_WRITE = 23;

    public const int MREMAP_MAYMOVE = 1;
    public const int MREMAP_FIXED = 2;

    public const int MS_SYNC = 4;

    private static readonly nint MapFailed = -1;

    /// <summary>Maps memory at an address that the kernel chooses; null with the error number on failure.</summary>
    public static SafeMapping? TryMap(nuint length, int protection, int flags, int descriptor, long offset, out int error)
    {
        var address = mmap(0, length, protection, flags, descriptor, offset);
        error = address == MapFailed ? Marshal.GetLastPInvokeError() : 0;
        return error == 0 ? new SafeMapping(address, length) : null;
    }

    /// <summary>Maps memory at an address that the kernel chooses, or throws.</summary>
    public static SafeMapping Map(nuint length, int protection, int flags, int descriptor, long offset, string attempted) =>
        TryMap(length, protection, flags, descriptor, offset, out var error) ?? throw new SyscallException("mmap", error, attempted);

    /// <summary>Gives advice about a range; returns 0 or the error number.</summary>
    public static int TryAdvise(nint address, nuint length, int advice)
    {
        while (madvise(address, length, advice) != 0)
        {
            var error = Marshal.GetLastPInvokeError();
            if (error != Errno.EINTR) return error;
        }

        return 0;
    }

    /// <summary>
    /// Whether every page of a range is in memory, mapped or not (<c>mincore(2)</c>); true also where the kernel does not tell, which it
    /// does for files that this process owns or may write.
    /// </summary>
    public static bool IsResident(nint address, nuint length)
    {
        const nuint step = 512;
        var pages = stackalloc byte[(int)step];
        var count = (length + (nuint)HostPage.Size - 1) / (nuint)HostPage.Size;
        for (nuint done = 0; done < count; done += step)
        {
            var part = Math.Min(step, count - done);
            if (mincore(address + (nint)(done * (nuint)HostPage.Size), part * (nuint)HostPage.Size, pages) != 0) return true;
            for (nuint i = 0; i < part; i++)
            {
                if ((pages[i] & 1) == 0) return false;
            }
        }

        return true;
    }

    /// <summary>Changes the protection of a range; returns 0 or the error number.</summary>
    public static int TryProtect(nint address, nuint length, int protection) =>
        mprotect(address, length, protection) == 0 ? 0 : Marshal.GetLastPInvokeError();

    /// <summary>Locks a range in memory, so that an access never waits for the disk; 0 or the error number.</summary>
    public static int TryLock(nint address, nuint length) => mlock(address, length) == 0 ? 0 : Marshal.GetLastPInvokeError();

    /// <summary>Writes changes of a range back to its file; returns 0 or the error number.</summary>
    public static int TrySync(nint address, nuint length, int flags) =>
        msync(address, length, flags) == 0 ? 0 : Marshal.GetLastPInvokeError();

    /// <summary>Unmaps a range; returns 0 or the error number.</summary>
    public static int TryUnmap(nint address, nuint length) =>
        munmap(address, length) == 0 ? 0 : Marshal.GetLastPInvokeError();

    /// <summary>
    /// Copies bytes with the C library. The thread is in preemptive mode meanwhile, so that a slow page fault does not delay a garbage
    /// collection. Not inlined: the change of mode has a frame, which shorter copies beside it would set up in vain.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static void Copy(void* destination, void* source, nuint length) => memcpy(destination, source, length);

    /// <summary>
    /// The same for up to a page or so of memory on which no page fault can wait: without the switch to preemptive mode, which shows
    /// beside so short a copy.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static void CopyFew(void* destination, void* source, nuint length) => memcpy_few(destination, source, length);

    /// <summary>
    /// Replaces a part of a mapping by another one in one step; returns 0 or the error number, and on failure the old mapping stays. The
    /// caller owns the range.
    /// </summary>
    public static int TryReplace(nint address, nuint length, int protection, int flags, int descriptor, long offset)
    {
        // MAP_FIXED unmaps before it calls the file's mmap: where that fails there is a hole, in which any other memory may be mapped.
        var made = mmap(0, length, protection, flags, descriptor, offset);
        if (made == MapFailed) return Marshal.GetLastPInvokeError();
        if (mremap(made, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, address) == address) return 0;
        var error = Marshal.GetLastPInvokeError();
        _ = munmap(made, length);
        return error;
    }

    /// <summary>Replaces a mapping by fresh anonymous memory in one step; false where the kernel refuses.</summary>
    public static bool TryReplaceByAnonymous(nint address, nuint length) =>
        mmap(address, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == address;

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint mmap(nint addr, nuint length, int prot, int flags, int fd, long offset);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint mremap(nint old_address, nuint old_size, nuint new_size, int flags, nint new_address);

    [LibraryImport("libc")]
    private static partial int mincore(nint addr, nuint length, byte* vec);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int mlock(nint addr, nuint len);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int munmap(nint addr, nuint length);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int mprotect(nint addr, nuint length, int prot);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int msync(nint addr, nuint length, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int madvise(nint addr, nuint length, int advice);

    [LibraryImport("libc")]
    private static partial void* memcpy(void* dest, void* src, nuint n);

    [LibraryImport("libc", EntryPoint = "memcpy")]
    [SuppressGCTransition]
    private static partial void* memcpy_few(void* dest, void* src, nuint n);
}
