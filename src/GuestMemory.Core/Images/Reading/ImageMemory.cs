using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Images;

/// <summary>Memory of an image that cannot be mapped: to be read, by copies, and not to be written.</summary>
internal abstract class ImageMemory : VolatileMemory
{
    private int _released;

    /// <param name="image">The file; one more user of it.</param>
    /// <param name="size">The bytes.</param>
    protected ImageMemory(ImageBytes image, ulong size)
        : base(size, MemoryProtection.Read) => Image = image.Use();

    public override bool MayWait => false;

    /// <summary>The path of the file.</summary>
    public string Path => Image.Path;

    protected ImageBytes Image { get; }

    public override void Release(bool force)
    {
        base.Release(force);
        if (Interlocked.Exchange(ref _released, 1) == 0) Image.Leave();
    }

    protected sealed override int ReadCore(ulong offset, Span<byte> buffer, out int error)
    {
        try
        {
            return ReadImage(offset, buffer, out error);
        }
        catch (ObjectDisposedException)
        {
            throw RegionDisposed();
        }
    }

    protected sealed override int WriteCore(ulong offset, ReadOnlySpan<byte> buffer, out int error)
    {
        error = Errno.EACCES;
        return 0;
    }

    protected sealed override string WhyNot(MemoryProtection access, int error) => error switch
    {
        Errno.EBADMSG => $"{Image.Path} is damaged there",
        Errno.EIO => $"{Image.Path} ends before it, or its disk cannot be read",
        _ => $"{Image.Path} is only read",
    };

    /// <summary>Reads bytes; fewer than asked only with an error number.</summary>
    protected abstract int ReadImage(ulong offset, Span<byte> buffer, out int error);
}
