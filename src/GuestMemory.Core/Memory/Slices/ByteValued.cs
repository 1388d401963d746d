using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace GuestMemory.Core;

/// <summary>
/// Plain data as bytes (vm-memory's ByteValued), as far as .NET has no name for it: every unmanaged type can be copied byte by byte, and
/// <see cref="MemoryMarshal"/> does most of the rest. A type with padding has bytes that no assignment sets.
/// </summary>
public static unsafe class ByteValued
{
    /// <summary>A value of zeros.</summary>
    public static T Zeroed<T>()
        where T : unmanaged => default;

    /// <summary>The bytes of a value in place.</summary>
    public static ReadOnlySpan<byte> AsSlice<T>(ref readonly T value)
        where T : unmanaged => MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in value));

    /// <summary>The bytes of a value in place, to write to.</summary>
    public static Span<byte> AsMutSlice<T>(ref T value)
        where T : unmanaged => MemoryMarshal.AsBytes(new Span<T>(ref value));

    /// <summary>
    /// Bytes as a value in place; a null reference (<see cref="Unsafe.IsNullRef"/>) unless they are exactly as many as the value has, and
    /// begin at a multiple of its alignment.
    /// </summary>
    public static ref readonly T FromSlice<T>(ReadOnlySpan<byte> bytes)
        where T : unmanaged => ref FromMutSlice<T>(MemoryMarshal.CreateSpan(ref MemoryMarshal.GetReference(bytes), bytes.Length));

    /// <summary>The same to write to.</summary>
    public static ref T FromMutSlice<T>(Span<byte> bytes)
        where T : unmanaged
    {
        ref var first = ref MemoryMarshal.GetReference(bytes);
        // The collector moves arrays by multiples of 8, which keeps every alignment that a value of a primitive type needs.
        return ref bytes.Length == sizeof(T) && (nuint)Unsafe.AsPointer(ref first) % (nuint)VolatileSlice.AlignmentOf<T>() == 0
            ? ref Unsafe.As<byte, T>(ref first)
            : ref Unsafe.NullRef<T>();
    }

    /// <summary>
    /// The bytes of a value as a slice (vm-memory's as_bytes). The value must stay where it is as long as the slice is used: on the stack,
    /// or in memory that is pinned or not the collector's.
    /// </summary>
    public static VolatileSlice AsBytes<T>(T* value)
        where T : unmanaged => new(value, (ulong)sizeof(T));

    /// <summary>Reads a value from a stream.</summary>
    /// <exception cref="GuestMemoryException">UnexpectedEof: the stream ends before.</exception>
    public static T ReadExactFrom<T>(Stream stream)
        where T : unmanaged
    {
        ArgumentNullException.ThrowIfNull(stream);
        Unsafe.SkipInit(out T value);
        if (stream.ReadAtLeast(AsMutSlice(ref value), sizeof(T), throwOnEndOfStream: false) < sizeof(T)) throw VolatileStreams.UnexpectedEof();
        return value;
    }

    /// <summary>Writes a value to a stream.</summary>
    /// <exception cref="GuestMemoryException">WriteZero: the stream has a fixed length that the value passes; what fits is written.</exception>
    public static void WriteAllTo<T>(T value, Stream stream)
        where T : unmanaged
    {
        ArgumentNullException.ThrowIfNull(stream);
        var bytes = AsSlice(in value);
        try
        {
            stream.Write(bytes);
        }
        catch (NotSupportedException) when (stream.CanWrite && stream.CanSeek)
        {
            // A stream over a fixed buffer refuses as a whole what does not fit.
            stream.Write(bytes[..(int)Math.Min(bytes.Length, stream.Length - stream.Position)]);
            throw VolatileStreams.WriteZero();
        }
    }
}
