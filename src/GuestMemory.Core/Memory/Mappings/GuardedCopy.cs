using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// Copies of mapped memory by the kernel (<c>process_vm_readv(2)</c> on this process): what cannot be had is an error number instead
/// of a signal, and a wait for a page stops no garbage collection.
/// </summary>
internal static unsafe class GuardedCopy
{
    /// <summary>Copies out of the memory; returns how many bytes came, fewer than asked only with an error number.</summary>
    public static nuint Read(byte* memory, byte* local, nuint length, out int error) => Copy(memory, local, length, write: false, out error);

    /// <summary>Copies into the memory; see <see cref="Read"/>.</summary>
    public static nuint Write(byte* memory, byte* local, nuint length, out int error) => Copy(memory, local, length, write: true, out error);

    /// <summary>Whether bytes can be accessed at once: the kernel would copy them in steps of its own.</summary>
    public static bool IsSingle(ulong address, nuint length) => length is 1 or 2 or 4 or 8 && (address & (length - 1)) == 0;

    /// <summary>The error of a call on guarded memory that failed; what helps, where it is the call that is refused and not the page.</summary>
    public static SyscallException Failure(string function, int error, string attempted) => new(function, error, attempted, remedy: error switch
    {
        Errno.EPERM or Errno.ENOSYS => $"A sandbox (a seccomp filter) denies {function}(2), without which guarded memory cannot be accessed. Allow it there.",
        Errno.EINVAL when function == "madvise" => "Atomic access to guarded memory needs Linux 5.14 (MADV_POPULATE_READ, MADV_POPULATE_WRITE). Reading and writing bytes does not.",
        _ => null,
    });

    /// <summary>Brings in the pages of bytes, so that touching them neither waits nor fails; returns the error number, or 0.</summary>
    public static int TryPopulate(byte* memory, nuint length, bool write)
    {
        var first = (nuint)memory & ~((nuint)HostPage.Size - 1);
        var end = ((nuint)memory + length + ((nuint)HostPage.Size - 1)) & ~((nuint)HostPage.Size - 1);
        return Mman.TryAdvise((nint)first, end - first, write ? Mman.MADV_POPULATE_WRITE : Mman.MADV_POPULATE_READ);
    }

    private static nuint Copy(byte* memory, byte* local, nuint length, bool write, out int error)
    {
        nuint done = 0;
        error = 0;
        while (done < length)
        {
            var count = write
                ? ProcessVm.TryWrite(Environment.ProcessId, local + done, (nint)memory + (nint)done, length - done)
                : ProcessVm.TryRead(Environment.ProcessId, local + done, (nint)memory + (nint)done, length - done);
            if (count > 0)
            {
                done += (nuint)count;
                continue;
            }

            if (count == -Errno.EINTR) continue;
            error = (int)-count;
            break;
        }

        return done;
    }
}
