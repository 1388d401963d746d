using System.Buffers.Binary;
using System.Text;

namespace GuestMemory.Core.Linux;

/// <summary>Reading what a guest's kernel keeps, by guest physical addresses; the kernel's image lies in one piece. What is there may lie.</summary>
internal static class KernelData
{
    /// <summary>The most bytes that are read of one table.</summary>
    public const int MaxSize = 64 << 20;

    /// <summary>How far behind the begin of a kernel's image what belongs to it is looked for.</summary>
    public const ulong ImageReach = 256 << 20;

    public static GuestMemoryException Invalid(string what) => new(GuestMemoryError.InvalidKernelData, what);

    public static byte[] Read(GuestMemoryMmap memory, ulong address, long size, string what, CancellationToken cancellation)
    {
        if (size is < 0 or > MaxSize) throw Invalid($"{what} cannot have {size} bytes.");
        if (!memory.CheckRange(new GuestAddress(address), (ulong)size)) throw Invalid($"{what} (0x{size:x} bytes at guest address 0x{address:x}) leaves the memory.");
        var bytes = new byte[size];
        memory.ReadExact(new GuestAddress(address), bytes, cancellation);
        return bytes;
    }

    /// <summary>As many of so many bytes as lie in one region; none where there is none.</summary>
    public static byte[] ReadSome(GuestMemoryMmap memory, ulong address, int size, CancellationToken cancellation)
    {
        var rest = memory.FindRegion(new GuestAddress(address)) is { } region ? region.LastAddress - address + 1 : 0;
        return Read(memory, address, (long)Math.Min((ulong)size, rest), "A part of the memory", cancellation);
    }

    public static uint ReadUInt32(GuestMemoryMmap memory, ulong address, string what, CancellationToken cancellation) =>
        BinaryPrimitives.ReadUInt32LittleEndian(Read(memory, address, 4, what, cancellation));

    public static ulong ReadUInt64(GuestMemoryMmap memory, ulong address, string what, CancellationToken cancellation) =>
        BinaryPrimitives.ReadUInt64LittleEndian(Read(memory, address, 8, what, cancellation));

    /// <summary>The text up to the first NUL; null where a byte of it is no ASCII that prints, or there is no NUL.</summary>
    public static string? Text(ReadOnlySpan<byte> bytes)
    {
        var end = bytes.IndexOf((byte)0);
        if (end < 0 || bytes[..end].ContainsAnyExceptInRange((byte)' ', (byte)'~')) return null;
        return Encoding.ASCII.GetString(bytes[..end]);
    }

    /// <summary>A text of the guest with '?' for every control character, as ps(1) shows them.</summary>
    public static string Printable(string text) => !text.Any(char.IsControl) ? text : string.Create(text.Length, text, static (shown, text) =>
    {
        for (var i = 0; i < text.Length; i++) shown[i] = char.IsControl(text[i]) ? '?' : text[i];
    });
}
