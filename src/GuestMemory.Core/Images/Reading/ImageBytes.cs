using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Images;

/// <summary>
/// An image as an open file, locked against writers that ask, as the image of a handler is. A flattened file (makedumpfile's form for pipes) reads as
/// the file that it stands for. It is closed when the last of its users has left it.
/// </summary>
internal sealed class ImageBytes
{
    private readonly SafeFileHandle _file;
    private readonly FlattenedFile? _flattened;
    private int _users = 1;

    private ImageBytes(SafeFileHandle file, string path, bool isPlain, CancellationToken cancellation)
    {
        _file = file;
        Path = path;
        FileLength = (ulong)RandomAccess.GetLength(file);
        _flattened = isPlain ? null : FlattenedFile.TryOpen(file, FileLength, path, cancellation);
        Length = _flattened?.Length ?? FileLength;
    }

    /// <summary>The path by which it was opened.</summary>
    public string Path { get; }

    /// <summary>The length in bytes, of what is read.</summary>
    public ulong Length { get; }

    /// <summary>The length of the file itself.</summary>
    public ulong FileLength { get; }

    /// <summary>Whether what is read is the file as it is, which then may be mapped.</summary>
    public bool IsPlain => _flattened is null;

    public SafeFileHandle File => _file;

    /// <param name="path">The file.</param>
    /// <param name="format">Its format, where that is known. One that is plain memory stands for nothing but itself, whatever it begins with.</param>
    /// <param name="cancellation">Ends it.</param>
    /// <exception cref="GuestMemoryException">ImageNotFound, NotAFile, ImageInUse; InvalidImage: it is empty, or not the flattened file that it says.</exception>
    /// <exception cref="UnauthorizedAccessException">This user may not read it.</exception>
    public static ImageBytes Open(string path, ImageFormat? format = null, CancellationToken cancellation = default)
    {
        RawImage.RequireFile(path);
        SafeFileHandle file;
        try
        {
            using var opened = System.IO.File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.Read);
            // A handle that .NET locked gives the lock up for all duplicates when it is closed, and mappings have duplicates.
            file = new SafeFileHandle(opened.DangerousGetHandle(), ownsHandle: true);
            opened.SetHandleAsInvalid();
        }
        catch (Exception exception) when (exception is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new GuestMemoryException(GuestMemoryError.ImageNotFound, $"There is no memory image at {path}.", exception);
        }
        catch (IOException exception)
        {
            throw new GuestMemoryException(GuestMemoryError.ImageInUse, $"{path} cannot be opened: another process writes it. ({exception.Message})", exception);
        }

        try
        {
            var bytes = new ImageBytes(file, path, isPlain: format is ImageFormat.Raw or ImageFormat.Diff, cancellation);
            return bytes.Length > 0 ? bytes : throw MemoryImage.Invalid(path, "it is empty");
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>One more user.</summary>
    public ImageBytes Use()
    {
        Interlocked.Increment(ref _users);
        return this;
    }

    /// <summary>A user less.</summary>
    public void Leave()
    {
        if (Interlocked.Decrement(ref _users) == 0) _file.Dispose();
    }

    /// <summary>Reads bytes; fewer than asked only with an error number: EIO where the file ends.</summary>
    /// <exception cref="ObjectDisposedException">Nobody uses it any more.</exception>
    public int TryRead(ulong offset, Span<byte> buffer, out int error)
    {
        if (_flattened is not null) return _flattened.TryRead(_file, offset, buffer, out error);
        return TryRead(_file, offset, buffer, out error);
    }

    /// <summary>Reads all the bytes of a header.</summary>
    /// <exception cref="GuestMemoryException">InvalidImage: the file ends before, or cannot be read.</exception>
    public void ReadExact(ulong offset, Span<byte> buffer)
    {
        if (TryRead(offset, buffer, out _) < buffer.Length) throw MemoryImage.Invalid(Path, $"it ends, or cannot be read, at offset 0x{offset:x}");
    }

    internal static int TryRead(SafeFileHandle file, ulong offset, Span<byte> buffer, out int error)
    {
        var done = 0;
        error = 0;
        try
        {
            while (done < buffer.Length)
            {
                var count = offset > long.MaxValue ? 0 : RandomAccess.Read(file, buffer[done..], (long)(offset + (ulong)done));
                if (count == 0)
                {
                    error = Errno.EIO;
                    break;
                }

                done += count;
            }
        }
        catch (Exception exception) when (exception is IOException or ArgumentOutOfRangeException)
        {
            error = Errno.EIO;
        }

        return done;
    }
}
