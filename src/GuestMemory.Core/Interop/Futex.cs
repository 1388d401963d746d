using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>futex(2)</c> within this process: a wait that ends as soon as a number changes, without memory of its own.</summary>
internal static unsafe partial class Futex
{
    public const int FUTEX_WAIT_PRIVATE = 128;
    public const int FUTEX_WAKE_PRIVATE = 129;

    private static readonly nint s_number = RuntimeInformation.ProcessArchitecture == Architecture.X64 ? 202 : 98;

    /// <summary>Sleeps while the number is <paramref name="expected"/>; may return early.</summary>
    public static void Wait(ref int number, int expected)
    {
        fixed (int* address = &number) _ = syscall(s_number, address, FUTEX_WAIT_PRIVATE, expected, null, null, 0);
    }

    /// <summary>Wakes one thread that waits for the number to change.</summary>
    public static void Wake(ref int number)
    {
        fixed (int* address = &number) _ = syscall(s_number, address, FUTEX_WAKE_PRIVATE, 1, null, null, 0);
    }

    [LibraryImport("libc")]
    private static partial nint syscall(nint number, int* uaddr, nint futex_op, nint val, void* timeout, void* uaddr2, nint val3);
}
