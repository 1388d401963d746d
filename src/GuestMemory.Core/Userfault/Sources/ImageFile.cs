using GuestMemory.Core.Images;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>Files that pages are read from.</summary>
internal static class ImageFile
{
    /// <summary>Opens a file of at least one byte for reading, locked against writers that ask.</summary>
    /// <exception cref="GuestMemoryException">ImageNotFound, ImageUnreadable.</exception>
    public static SafeFileHandle Open(string path)
    {
        RequireFile(path);
        SafeFileHandle? file = null;
        try
        {
            file = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.Read);
            if (RandomAccess.GetLength(file) > 0) return file;
            file.Dispose();
        }
        catch (Exception exception)
        {
            file?.Dispose();
            throw exception switch
            {
                FileNotFoundException or DirectoryNotFoundException => new GuestMemoryException(GuestMemoryError.ImageNotFound, $"There is no memory image at {path}.", exception),
                IOException or UnauthorizedAccessException => new GuestMemoryException(GuestMemoryError.ImageUnreadable, $"The memory image {path} cannot be opened for reading: {exception.Message}", exception),
                _ => exception,
            };
        }

        throw new GuestMemoryException(GuestMemoryError.ImageUnreadable, $"The memory image {path} is empty.");
    }

    /// <summary>The source that a file is: an image of chunks, or a raw one, with layers of changes above it.</summary>
    /// <exception cref="GuestMemoryException">ImageNotFound, ImageUnreadable, InvalidImage, BaseSizeMismatch.</exception>
    public static PageSource OpenSource(string path, IReadOnlyList<string> layerPaths)
    {
        var opened = new List<MappedFileSource>(layerPaths.Count);
        PageSource? image = null;
        try
        {
            RequireFile(path);
            image = ChunkedImage.IsOne(path) ? ChunkedSource.Open(path) : MappedFileSource.Open(path);
            if (layerPaths.Count == 0) return image;
            foreach (var layer in layerPaths) opened.Add(MappedFileSource.Open(layer));
            return new LayeredSource(image, opened);
        }
        catch
        {
            image?.Dispose();
            foreach (var layer in opened) layer.Dispose();
            throw;
        }
    }

    private static void RequireFile(string path)
    {
        // Opening a pipe would wait for somebody who writes.
        if (FileStatus.IsSpecial(path))
            throw new GuestMemoryException(GuestMemoryError.ImageUnreadable, $"{path} is a directory, a device, a pipe or a socket; a memory image is a file.");
    }
}
