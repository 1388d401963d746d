namespace GuestMemory.Core.Userfault;

/// <summary>
/// An image with the changes of later snapshots above it, each a sparse file of the same length: the page of the last layer that has
/// data there is the one. A layer must have been written with its holes; a copy that made them of zeros, or zeros of them, is another
/// memory.
/// </summary>
internal sealed class LayeredSource : PageSource
{
    private readonly PageSource _base;
    private readonly MappedFileSource[] _layers;

    /// <summary>Takes the sources over where it succeeds.</summary>
    /// <param name="image">The base.</param>
    /// <param name="layers">The layers, the oldest first.</param>
    /// <exception cref="GuestMemoryException">BaseSizeMismatch.</exception>
    public LayeredSource(PageSource image, IReadOnlyList<MappedFileSource> layers)
    {
        foreach (var layer in layers)
        {
            if (layer.Length != image.Length)
                throw new GuestMemoryException(GuestMemoryError.BaseSizeMismatch, $"The layer {layer.Name} is {layer.Length} bytes long and the image {image.Name} {image.Length}: it is not of this memory.");
        }

        _base = image;
        _layers = [.. layers.Reverse()];
    }

    public override string Name => _base.Name;

    public override ulong Length => _base.Length;

    public override int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run) => Find(offset, ref length).Locate(offset, length, scratch, out run);

    public override void Prepare(ulong offset, ulong length, PageScratch scratch)
    {
        for (ulong done = 0; done < length;)
        {
            var part = length - done;
            var source = Find(offset + done, ref part);
            source.Prepare(offset + done, part, scratch);
            done += part;
        }
    }

    public override bool IsReady(ulong offset, ulong length)
    {
        for (ulong done = 0; done < length;)
        {
            var part = length - done;
            if (!Find(offset + done, ref part).IsReady(offset + done, part)) return false;
            done += part;
        }

        return true;
    }

    /// <summary>Which source has the bytes at an offset, and how many of them.</summary>
    private PageSource Find(ulong offset, ref ulong length)
    {
        foreach (var layer in _layers)
        {
            length = layer.DataRun(offset, length, out var isData);
            if (isData) return layer;
        }

        return _base;
    }

    public override void StartReadAhead()
    {
        _base.StartReadAhead();
        foreach (var layer in _layers) layer.StartReadAhead();
    }

    public override void Dispose()
    {
        _base.Dispose();
        foreach (var layer in _layers) layer.Dispose();
    }
}
