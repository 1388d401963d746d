namespace GuestMemory.Core.Userfault;

/// <summary>
/// An image with the changes of later snapshots above it, each a file of the same length: the page of the last layer that has
/// one there is the one.
/// </summary>
internal sealed class LayeredSource : PageSource
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
