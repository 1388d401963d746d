using GuestMemory.Core;
using GuestMemory.Core.Images;

namespace GuestMemory.Fuzz.Targets;

/// <summary>An image of a format that is opened as memory, of which each region is read in pieces as an export does, and at places as a cmdlet does.</summary>
internal static class MemoryImageTarget
{
    private const int Piece = 1 << 16;
    private const int MaxPieces = 64;

    public static Action<byte[]> Of(ImageFormat format) => input => Run(input, format);

    /// <summary>The state.json of cloud-hypervisor.</summary>
    public static void RunState(byte[] input)
    {
        if (!Check.TryParse(() => MemoryRangesState.Parse(input, "state.json"), out var layout, GuestMemoryError.LayoutMismatch)) return;
        _ = Check.TryParse(() => layout.Place(1 << 20, "memory-ranges"), out _, GuestMemoryError.LayoutMismatch);
    }

    private static void Run(byte[] input, ImageFormat format)
    {
        if (input.Length == 0) return;
        using var files = new Files();
        var path = files.Write(input);
        Check.ClosesEverything(() => OpenAndRead(path, format));
    }

    private static void OpenAndRead(string path, ImageFormat format)
    {
        if (!Check.TryParse(() => MemoryImage.Open(path, new ImageOpenOptions { Format = format }), out var memory, GuestMemoryError.InvalidImage, GuestMemoryError.ImageUnsupported)) return;
        try
        {
            ulong end = 0;
            var pieces = 0;
            foreach (var region in memory.Regions)
            {
                Check.True(region.GuestAddress >= end, "regions overlap");
                end = region.LastAddress + 1;
                for (ulong at = 0; at < region.Size && pieces < MaxPieces; at += Piece, pieces++) Read(region, at, (int)Math.Min(Piece, region.Size - at));
                Read(region, region.Size - 1, 1);
                Read(region, region.Size / 2, (int)Math.Min(100, region.Size - (region.Size / 2)));
            }
        }
        finally
        {
            foreach (var region in memory.Regions) region.Dispose();
        }
    }

    private static void Read(GuestMemoryRegion region, ulong offset, int length)
    {
        var buffer = new byte[length];
        if (!Check.TryParse(() => region.Read(new MemoryRegionAddress(offset), buffer), out var count, GuestMemoryError.PageNotAccessible)) return;
        Check.Same(length, count, "the bytes read");
        // The same bytes one by one, which the blocks that are kept give.
        var one = new byte[1];
        Check.Same(1, region.Read(new MemoryRegionAddress(offset), one), "the bytes read");
        Check.Same(buffer[0], one[0], $"the byte at 0x{offset:x}");
    }
}
