namespace GuestMemory.Core.Userfault;

/// <summary>
/// An image with the changes of later snapshots above it, each a file of the same length: the page of the last layer that has
/// one there is the one.
/// </summary>
internal sealed class LayeredSource : CompositeSource
{
    private readonly PageSource _base;
    private readonly MappedFileSource[] _layers;

    /// <summary>Takes the sources over where it succeeds.</summary>
    /// <param name="image">The base.</param>
    /// <param name="layers">The layers, the oldest first.</param>
    public LayeredSource(PageSource image, IReadOnlyList<MappedFileSource> layers)
    {
        _base = image;
        _layers = [.. layers.Reverse()];
    }

    public override string Name => _base.Name;

    public override ulong Length => _base.Length;

    public override string Layout => string.Join("; ", _layers.Reverse().Select(static layer => layer.LayerLayout).Prepend(_base.Layout));

    protected override PageSource Find(ref ulong offset, ref ulong length)
    {
        foreach (var layer in _layers)
        {
            length = layer.DataRun(offset, length, out var isData);
            if (isData) return layer;
        }

        return _base;
    }

    public override void DoubtReady()
    {
        foreach (var layer in _layers) layer.DoubtReady();
        _base.DoubtReady();
    }

    public override void ReadAhead(CancellationToken cancellation)
    {
        foreach (var layer in _layers) layer.ReadAhead(cancellation);
        _base.ReadAhead(cancellation);
    }

    public override void Dispose()
    {
        _base.Dispose();
        foreach (var layer in _layers) layer.Dispose();
    }
}
