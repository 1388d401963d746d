namespace GuestMemory.Core.Userfault;

/// <summary>What the VMs of a handler share: who fills ahead, who waits for disks, and memory to make pages in.</summary>
internal sealed class UffdVmHelpers : IDisposable
{
    /// <param name="source">Where the pages come from.</param>
    /// <param name="policy">How they are brought in.</param>
    public UffdVmHelpers(PageSource source, UffdPolicy policy)
    {
        Fetchers = new UffdFetchers(source);
        if (policy.FillsAll || policy.Replay is not null) Filler = new UffdFiller(policy);
    }

    /// <summary>Null where nothing is filled ahead.</summary>
    public UffdFiller? Filler { get; }

    public UffdFetchers Fetchers { get; }

    public PageScratchPool Scratches { get; } = new();

    public void Dispose()
    {
        Filler?.Dispose();
        Fetchers.Dispose();
        Scratches.Dispose();
    }
}
