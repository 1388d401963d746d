namespace GuestMemory.Core.Tests;

/// <summary>The writers of whole images, by their formats.</summary>
internal static class ImageWriting
{
    public static IReadOnlyList<ImageFormat> Formats => [ImageFormat.Raw, ImageFormat.Chunked, ImageFormat.ElfCore, ImageFormat.LiME, ImageFormat.Avml];

    public static ImageInfo Write(ImageFormat format, GuestMemoryMmap memory, string path, bool overwrite = false, bool digest = false, Action<ulong>? progress = null, CancellationToken cancellation = default) => format switch
    {
        ImageFormat.Raw => RawImage.WriteFull(memory, path, overwrite, digest, progress, cancellation),
        ImageFormat.Chunked => ChunkedImage.Write(memory, path, overwrite, digest: digest, progress: progress, cancellation: cancellation),
        ImageFormat.ElfCore => ElfCoreWriter.Write(memory, path, overwrite, digest, null, progress, cancellation),
        ImageFormat.LiME => LimeWriter.Write(memory, path, overwrite, digest, progress, cancellation),
        ImageFormat.Avml => AvmlWriter.Write(memory, path, overwrite, digest, progress, cancellation),
        _ => throw new ArgumentOutOfRangeException(nameof(format)),
    };
}
