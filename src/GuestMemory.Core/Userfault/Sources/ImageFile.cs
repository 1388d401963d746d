using GuestMemory.Core.Images;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// A memory image, or a layer of one, as an open file, locked against writers that ask. The descriptor is what VMs are served from,
/// whatever becomes of the path; the lock is the file's until the last duplicate of the descriptor is closed, in whichever process.
/// </summary>
internal sealed class ImageFile : IDisposable
{
    // A worker is given each by a message of its own, which must all find room in the channel.
    private const int MaxLayers = 64;

    private ImageFile(string path, SafeDescriptor descriptor, ImagePart part = ImagePart.Memory)
    {
        Path = path;
        Part = part;
        Descriptor = descriptor;
        Handle = new SafeFileHandle(descriptor.Number, ownsHandle: false);
    }

    /// <summary>The path by which it was opened.</summary>
    public string Path { get; }

    /// <summary>What it holds.</summary>
    public ImagePart Part { get; }

    public SafeDescriptor Descriptor { get; }

    /// <summary>The same descriptor, for reading.</summary>
    public SafeFileHandle Handle { get; }

    public ulong Length => FileStatus.Get(Descriptor).stx_size;

    /// <summary>Opens a file of at least one byte for reading.</summary>
    /// <exception cref="GuestMemoryException">ImageNotFound, ImageUnreadable.</exception>
    public static ImageFile Open(string path) => Open(path, ImagePart.Memory);

    private static ImageFile Open(string path, ImagePart part)
    {
        // Opening a pipe would wait for a writer.
        if (FileStatus.IsSpecial(path))
            throw new GuestMemoryException(GuestMemoryError.ImageUnreadable, $"{path} is a directory, a device, a pipe or a socket; a memory image is a file.");
        try
        {
            using var opened = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.Read);
            if (RandomAccess.GetLength(opened) == 0) throw new GuestMemoryException(GuestMemoryError.ImageUnreadable, $"The memory image {path} is empty.");
            var descriptor = new SafeDescriptor((int)opened.DangerousGetHandle());
            // A handle of .NET's would release the lock for all duplicates when it is closed.
            opened.SetHandleAsInvalid();
            return new ImageFile(path, descriptor, part);
        }
        catch (Exception exception) when (exception is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new GuestMemoryException(GuestMemoryError.ImageNotFound, $"There is no memory image at {path}.", exception);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new GuestMemoryException(GuestMemoryError.ImageUnreadable, $"The memory image {path} cannot be opened for reading: {exception.Message}", exception);
        }
    }

    /// <summary>A file that another process has opened. The descriptor is taken over.</summary>
    /// <param name="path">The path by which that process opened it.</param>
    /// <param name="descriptor">The descriptor.</param>
    /// <param name="part">What it holds.</param>
    public static ImageFile Adopt(string path, SafeDescriptor descriptor, ImagePart part) => new(path, descriptor, part);

    /// <summary>
    /// Opens an image and its layers, and behind each layer the file of its bits, where one lies beside it; at the end the record that is to be
    /// replayed, where that holds pages.
    /// </summary>
    /// <param name="path">The image.</param>
    /// <param name="layerPaths">The layers, the oldest first.</param>
    /// <param name="replayPath">The record; null where there is none.</param>
    /// <exception cref="GuestMemoryException">ImageNotFound, ImageUnreadable; ValueNotSupported: more than 64 layers.</exception>
    public static IReadOnlyList<ImageFile> OpenAll(string path, IReadOnlyList<string> layerPaths, string? replayPath = null)
    {
        if (layerPaths.Count > MaxLayers)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"{layerPaths.Count} layers are more than the {MaxLayers} that a handler serves.");
        var files = new List<ImageFile>(layerPaths.Count + 1);
        try
        {
            files.Add(Open(path));
            foreach (var layer in layerPaths)
            {
                files.Add(Open(layer));
                if (System.IO.Path.Exists(DirtySidecar.PathOf(layer))) files.Add(Open(DirtySidecar.PathOf(layer), ImagePart.Map));
            }

            if (replayPath is not null && TouchRecord.HasPages(replayPath)) files.Add(Open(replayPath, ImagePart.WorkingSet));

            return files;
        }
        catch
        {
            foreach (var file in files) file.Dispose();
            throw;
        }
    }

    /// <summary>The source that files are: an image of chunks, or a raw one, with layers of changes above it, and a record's pages above all. They are taken over.</summary>
    /// <param name="files">The image and its layers, the oldest first, each with the file of its bits behind it; last the record where there is one.</param>
    /// <exception cref="GuestMemoryException">ImageUnreadable, InvalidImage, BaseSizeMismatch, LayerUntrusted, InvalidRecord.</exception>
    public static PageSource OpenSource(IReadOnlyList<ImageFile> files)
    {
        var opened = new List<PageSource>(files.Count);
        try
        {
            opened.Add(ChunkedImage.IsOne(files[0].Handle) ? new ChunkedSource(files[0]) : new MappedFileSource(files[0]));
            for (var i = 1; i < files.Count; i++)
            {
                if (files[i].Part != ImagePart.Memory) continue;
                var map = i + 1 < files.Count && files[i + 1].Part == ImagePart.Map ? files[i + 1] : null;
                opened.Add(MappedFileSource.OpenLayer(files[i], map, opened[0]));
                // All of it was read.
                map?.Dispose();
            }

            var memory = opened.Count == 1 ? opened[0] : new LayeredSource(opened[0], [.. opened.Skip(1).Cast<MappedFileSource>()]);
            return files[^1].Part == ImagePart.WorkingSet ? WorkingSetSource.Open(memory, files[^1], files.Where(static file => file.Part == ImagePart.Memory)) : memory;
        }
        catch
        {
            foreach (var source in opened) source.Dispose();
            foreach (var file in files) file.Dispose();
            throw;
        }
    }

    /// <summary>The bytes of the memory that files are.</summary>
    /// <exception cref="GuestMemoryException">InvalidImage.</exception>
    public static ulong LengthOf(IReadOnlyList<ImageFile> files) =>
        ChunkedImage.IsOne(files[0].Handle) ? ChunkedImage.ReadIndex(files[0].Handle, files[0].Path).Length : files[0].Length;

    /// <summary>The same open file with a descriptor of its own.</summary>
    /// <exception cref="SyscallException">No descriptor is to be had.</exception>
    public ImageFile Duplicate()
    {
        using var duplicate = Interop.Descriptor.Duplicate(Descriptor);
        var descriptor = new SafeDescriptor((int)duplicate.DangerousGetHandle());
        duplicate.SetHandleAsInvalid();
        return new ImageFile(Path, descriptor, Part);
    }

    public void Dispose()
    {
        Handle.Dispose();
        Descriptor.Dispose();
    }
}
