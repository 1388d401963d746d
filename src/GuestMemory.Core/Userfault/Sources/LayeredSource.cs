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

    public override string Layout => string.Join("; ", _layers.Reverse().Select(static layer => layer.LayerLayout).Prepend(_base.Layout));

    public override int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run)
    {
        foreach (var layer in _layers)
        {
            length = layer.DataRun(offset, length, out var isData);
            if (isData) return layer.Locate(offset, length, scratch, out run);
        }

        return _base.Locate(offset, length, scratch, out run);
    }

    public override void Prepare(ulong offset, ulong length)
    {
        foreach (var layer in _layers) layer.Prepare(offset, length);
        _base.Prepare(offset, length);
    }

    public override bool IsReady(ulong offset, ulong length) => Array.TrueForAll(_layers, layer => layer.IsReady(offset, length)) && _base.IsReady(offset, length);

    public override void Dispose()
    {
        _base.Dispose();
        foreach (var layer in _layers) layer.Dispose();
    }
}
