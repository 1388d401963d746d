namespace GuestMemory.Core.Userfault;

/// <summary>What the VMs of a handler share, of whichever image they are: who fills ahead, who reads images ahead, who waits for disks, and memory to make pages in.</summary>
internal sealed class UffdVmHelpers : IDisposable
{
    private readonly UffdReaders _readers = new();
    private UffdFiller? _filler;

    public UffdFetchers Fetchers { get; } = new();

    public PageScratchPool Scratches { get; } = new();

    /// <summary>Who fills the VMs of an image ahead; null where nothing is. All images of a handler have one filler, with one budget. For one thread at a time.</summary>
    public UffdFiller? FillerOf(UffdPolicy policy)
    {
        if (!policy.FillsAll && policy.Replay is null) return null;
        return _filler ??= new UffdFiller(policy);
    }

    /// <summary>Who reads images ahead. For one thread at a time.</summary>
    public UffdReaders GetReaders()
    {
        _readers.Prepare();
        return _readers;
    }

    public void Dispose()
    {
        _readers.Dispose();
        _filler?.Dispose();
        Fetchers.Dispose();
        Scratches.Dispose();
    }
}
