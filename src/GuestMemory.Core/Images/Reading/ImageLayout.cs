using System.Runtime.InteropServices;

namespace GuestMemory.Core.Images;

/// <summary>
/// Where the memory of an image belongs that has no guest addresses itself (Raw, Chunked, MemoryRanges). Firecracker's follow from the length
/// alone: memory leaves out what the machine keeps for its devices (its src/vmm/src/arch, layout.rs of each architecture).
/// </summary>
public sealed class ImageLayout
{
    private const ulong GiB = 1UL << 30;

    private readonly (ulong Start, ulong End)[] _rooms;
    private readonly ImageRange[]? _ranges;

    private ImageLayout(params (ulong Start, ulong End)[] rooms) => _rooms = rooms;

    private ImageLayout(ImageRange[] ranges)
    {
        _rooms = [];
        _ranges = ranges;
    }

    /// <summary>A microVM on x86-64: from 0, but for 3 GiB to 4 GiB and 256 GiB to 512 GiB.</summary>
    public static ImageLayout X64 { get; } = new((0, 3 * GiB), (4 * GiB, 256 * GiB), (512 * GiB, ImageMap.AddressLimit));

    /// <summary>A microVM on aarch64: from 2 GiB, but for 256 GiB to 512 GiB.</summary>
    public static ImageLayout Arm64 { get; } = new((2 * GiB, 256 * GiB), (512 * GiB, ImageMap.AddressLimit));

    /// <summary>All of it from address 0: an offset in the file is the guest address.</summary>
    public static ImageLayout Flat { get; } = new((0, ImageMap.AddressLimit));

    /// <summary>That of a microVM on a machine like this one.</summary>
    public static ImageLayout Host => RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? Arm64 : X64;

    /// <summary>Ranges one behind the other in the file, or where their offsets say.</summary>
    /// <exception cref="GuestMemoryException">LayoutMismatch: there is none, one is empty, ends past the addresses of any machine, or overlaps another.</exception>
    public static ImageLayout FromRanges(IEnumerable<ImageRange> ranges)
    {
        ArgumentNullException.ThrowIfNull(ranges);
        ImageRange[] all = [.. ranges];
        if (all.Length == 0) throw Mismatch("A layout has at least one range.");
        foreach (var range in all)
        {
            if (range.Size == 0 || range.Size > ImageMap.AddressLimit || range.Address > ImageMap.AddressLimit - range.Size)
                throw Mismatch($"The range 0x{range.Address:x} + 0x{range.Size:x} of the layout is empty, or ends past 2^52, the last physical address of any machine.");
        }

        ImageRange[] sorted = [.. all.OrderBy(static range => range.Address)];
        for (var i = 1; i < sorted.Length; i++)
        {
            if (sorted[i].Address - sorted[i - 1].Address < sorted[i - 1].Size)
                throw Mismatch($"The ranges of the layout at 0x{sorted[i - 1].Address:x} and 0x{sorted[i].Address:x} overlap.");
        }

        return new ImageLayout(all);
    }

    /// <summary>Lays a file out.</summary>
    /// <param name="length">Its bytes of memory.</param>
    /// <param name="path">Its name in errors.</param>
    /// <exception cref="GuestMemoryException">LayoutMismatch: the ranges are not those of a file of that length.</exception>
    internal List<ImageExtent> Place(ulong length, string path)
    {
        var extents = new List<ImageExtent>();
        if (_ranges is null)
        {
            ulong done = 0;
            foreach (var (start, end) in _rooms)
            {
                var size = Math.Min(length - done, end - start);
                if (size > 0) extents.Add(new ImageExtent(start, size, done, size));
                done += size;
            }

            return done == length ? extents : throw Mismatch($"{path} has {length} bytes, more than the memory of any machine.");
        }

        ulong next = 0;
        foreach (var range in _ranges)
        {
            var from = range.FileOffset ?? next;
            if (from > length || range.Size > length - from)
                throw Mismatch($"{path} has 0x{length:x} bytes, and the range at guest address 0x{range.Address:x} would be 0x{range.Size:x} bytes from offset 0x{from:x}. Give the ranges that the file has.");
            extents.Add(new ImageExtent(range.Address, range.Size, from, range.Size));
            next = from + range.Size;
        }

        if (!Array.Exists(_ranges, static range => range.FileOffset is not null) && next != length)
            throw Mismatch($"The ranges of the layout have 0x{next:x} bytes together, and {path} has 0x{length:x}. Give all of its ranges, or their offsets in the file.");
        return extents;
    }

    private static GuestMemoryException Mismatch(string message) => new(GuestMemoryError.LayoutMismatch, message);
}
