using System.Runtime.CompilerServices;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Tests;

/// <summary>
/// Memory without any address, as another process's: a file that is read and written at offsets. For an atomic operation or a system
/// call it lends a copy, which it writes back. All that is one access at a time.
/// </summary>
internal sealed unsafe class PreadMemory(string path, ulong size) : VolatileMemory(size)
{
    private readonly SafeFileHandle _file = System.IO.File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite);
    private readonly object _turn = new();

    public override bool MayWait => false;

    protected override int ReadCore(ulong offset, Span<byte> buffer, out int error)
    {
        lock (_turn)
        {
            var count = RandomAccess.Read(_file, buffer, (long)offset);
            error = count == buffer.Length ? 0 : Errno.EIO;
            return count;
        }
    }

    protected override int WriteCore(ulong offset, ReadOnlySpan<byte> buffer, out int error)
    {
        lock (_turn) RandomAccess.Write(_file, buffer, (long)offset);
        error = 0;
        return buffer.Length;
    }

    protected override nint Pin(ulong offset, ulong length, MemoryProtection access, out object? state, out int error)
    {
        Monitor.Enter(_turn);
        var copy = GC.AllocateArray<byte>((int)length + 8, pinned: true);
        state = (copy, offset, access);
        ReadCore(offset, copy.AsSpan(0, (int)length), out error);
        if (error != 0) Monitor.Exit(_turn);
        return (nint)Unsafe.AsPointer(ref copy[0]);
    }

    protected override void Unpin(nint address, ulong length, object? state)
    {
        var (copy, offset, access) = ((byte[], ulong, MemoryProtection))state!;
        if (access.HasWrite()) WriteCore(offset, copy.AsSpan(0, (int)length), out _);
        Monitor.Exit(_turn);
    }

    public override void Release(bool force)
    {
        base.Release(force);
        lock (_turn) _file.Dispose();
    }
}
