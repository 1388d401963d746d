using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Images;

/// <summary>Whether the pages that a diff has can be told from those that it has not: by the bits beside it, or by its holes.</summary>
internal static class DiffTrust
{
    /// <summary>Refuses bits that are older than the diff.</summary>
    /// <exception cref="GuestMemoryException">LayerUntrusted.</exception>
    public static void RequireNewer(string diff, Statx status, string map, Statx mapStatus)
    {
        if (status.stx_mtime.Nanoseconds > mapStatus.stx_mtime.Nanoseconds)
            throw Untrusted(diff, $"{diff} was written after {map}, which tells of the pages of another diff, then. If nothing but the time has changed, 'touch' the latter");
    }

    /// <summary>Refuses holes where the file system keeps them in larger pieces than pages.</summary>
    /// <exception cref="GuestMemoryException">LayerUntrusted.</exception>
    public static void RequireFineHoles(string diff, Statx status)
    {
        if (status.stx_blksize > HostPage.Size)
            throw Untrusted(diff, $"{diff} lies on a file system that keeps its holes in pieces of {status.stx_blksize} bytes, in which pages that were not written hide those of the image");
    }

    /// <summary>The error for a diff without a hole.</summary>
    public static GuestMemoryException NoHole(string diff) => Untrusted(diff, $"{diff} has no hole: a file that was copied without its holes looks like that, and hides the whole image");

    private static GuestMemoryException Untrusted(string diff, string why) =>
        new(GuestMemoryError.LayerUntrusted, $"{why}. Which pages a layer has {DirtySidecar.PathOf(diff)} would tell, which is written with a diff.");
}
