using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// An image in the process that serves its VMs: where the pages come from, how they are brought in, and, where this process listens itself,
/// where VMMs come in. What it is made of is its own.
/// </summary>
/// <param name="options">The image.</param>
/// <param name="source">Where the pages come from.</param>
/// <param name="policy">How they are brought in.</param>
/// <param name="listener">Where VMMs connect; null where another process listens.</param>
/// <param name="files">The files of the image once more, to read the memory of VMs beside the serving; empty where that is another process's matter.</param>
internal sealed class UffdImageService(UffdImageOptions options, PageSource source, UffdPolicy policy, UnixListener? listener = null, IReadOnlyList<ImageFile>? files = null) : IDisposable
{
    private int _hasVm;

    public UffdImageOptions Options => options;

    public string Name => options.Name;

    public PageSource Source => source;

    public UffdPolicy Policy => policy;

    /// <summary>Who fills its VMs ahead; null where nothing is. Of every thread once a server has the image.</summary>
    public UffdFiller? Filler { get; set; }

    /// <summary>Who reads it ahead; null where nothing does. Of every thread once a server has the image.</summary>
    public UffdReaders? Readers { get; set; }

    /// <summary>What was counted for its VMs that have ended. Under the lock of the server.</summary>
    public UffdTotals Ended { get; } = new();

    /// <summary>Where its VMMs come in, once a server has the image. Of the handler's thread.</summary>
    public HandoverListener Handovers { get; private set; } = null!;

    /// <summary>Whether it goes when no VM is served from it any more. Written by the handler's thread under the lock of the server.</summary>
    public bool IsRemoved { get; set; }

    /// <summary>Makes what lets VMMs in. For the server that takes the image.</summary>
    public void Listen(UffdHandlerOptions all, TimeSpan? acceptTimeout, IHandoverOwner owner) => Handovers = new HandoverListener(Name, listener, all, acceptTimeout, owner);

    /// <summary>Has it read ahead when its first VM comes. For any thread.</summary>
    public void NoteVm()
    {
        if (Interlocked.Exchange(ref _hasVm, 1) == 0) Readers?.Add(source);
    }

    /// <summary>Its files, opened once more.</summary>
    /// <exception cref="GuestMemoryException">ValueNotSupported: it is no image but memory.</exception>
    public PageSource Open()
    {
        if (files is not { Count: > 0 })
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"The handler at {options.SocketPath} serves out of {options.MemoryPath}, and no image: what its VMs have not touched is read there.");
        return ImageFile.OpenSource([.. files.Select(static file => file.Duplicate())]);
    }

    public void Dispose()
    {
        listener?.Dispose();
        policy.Dispose();
        Readers?.Remove(source);
        source.Dispose();
        foreach (var file in files ?? []) file.Dispose();
    }
}
