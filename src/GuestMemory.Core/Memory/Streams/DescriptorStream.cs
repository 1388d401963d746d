using System.Buffers;
using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// An open file, pipe, terminal or socket as source and sink: <c>read(2)</c> and <c>write(2)</c> at its own position, straight from
/// and to the memory. Guarded memory takes a way around, since the kernel would stop half-way at a page that cannot be had.
/// </summary>
/// <param name="handle">The descriptor: a SafeFileHandle, SafeSocketHandle or SafeDescriptor, which stays its owner's.</param>
public sealed unsafe class DescriptorStream(SafeHandle handle) : IReadVolatile, IWriteVolatile
{
    private const int Piece = 64 << 10;

    /// <inheritdoc/>
    public ulong ReadVolatile(VolatileSlice slice)
    {
        if (slice.IsEmpty) return 0;
        using var descriptor = new DescriptorLease(handle);
        if (!slice.IsDirect) return ReadAround(descriptor.Number, slice);
        using var guard = slice.PtrGuard(MemoryProtection.Write);
        var count = Descriptor.TryRead(descriptor.Number, (void*)guard.Pointer, (nuint)slice.Size);
        slice.MarkWritten(count < 0 ? slice.Size : (ulong)count);
        return count >= 0 ? (ulong)count : throw Failure("read", count, "Reading into guest memory");
    }

    /// <inheritdoc/>
    public void ReadExactVolatile(VolatileSlice slice)
    {
        var self = this;
        VolatileStreams.ReadExact(ref self, slice);
    }

    /// <inheritdoc/>
    public ulong WriteVolatile(VolatileSlice slice)
    {
        if (slice.IsEmpty) return 0;
        using var descriptor = new DescriptorLease(handle);
        if (!slice.IsDirect) return WriteAround(descriptor.Number, slice);
        using var guard = slice.PtrGuard(MemoryProtection.Read);
        var count = Descriptor.TryWrite(descriptor.Number, (void*)guard.Pointer, (nuint)slice.Size);
        return count >= 0 ? (ulong)count : throw Failure("write", count, "Writing guest memory out");
    }

    /// <inheritdoc/>
    public void WriteAllVolatile(VolatileSlice slice)
    {
        var self = this;
        VolatileStreams.WriteAll(ref self, slice);
    }

    private static ulong ReadAround(int descriptor, VolatileSlice slice)
    {
        var buffer = ArrayPool<byte>.Shared.Rent((int)Math.Min(Piece, slice.Size));
        try
        {
            nint count;
            fixed (byte* local = buffer) count = Descriptor.TryRead(descriptor, local, (nuint)Math.Min((ulong)buffer.Length, slice.Size));
            if (count < 0)
            {
                // Nothing has come; the result is the same whichever way was taken.
                slice.MarkWritten(slice.Size);
                throw Failure("read", count, "Reading into guest memory");
            }

            slice.WriteExact(0, buffer.AsSpan(0, (int)count));
            return (ulong)count;
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    private static ulong WriteAround(int descriptor, VolatileSlice slice)
    {
        var buffer = ArrayPool<byte>.Shared.Rent((int)Math.Min(Piece, slice.Size));
        try
        {
            var length = slice.Read(0, buffer);
            nint count;
            fixed (byte* local = buffer) count = Descriptor.TryWrite(descriptor, local, (nuint)length);
            return count >= 0 ? (ulong)count : throw Failure("write", count, "Writing guest memory out");
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    private static SyscallException Failure(string function, nint error, string attempted) => new(function, (int)-error, attempted);
}
