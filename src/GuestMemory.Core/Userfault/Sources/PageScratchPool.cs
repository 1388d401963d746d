namespace GuestMemory.Core.Userfault;

/// <summary>
/// Lends memory to make pages in, so that a VM holds some only while it is served: as much is kept as threads work at once, whatever
/// the number of VMs. For any thread; allocates only where more threads work at once than ever before.
/// </summary>
internal sealed class PageScratchPool : IDisposable
{
    private const int Kept = 16;

    // Each place is taken and given back by one exchange.
    private readonly PageScratch?[] _free = new PageScratch?[Kept];

    public PageScratch Rent()
    {
        var first = Environment.CurrentManagedThreadId;
        for (var i = 0; i < Kept; i++)
        {
            ref var place = ref _free[(first + i) % Kept];
            if (place is not null && Interlocked.Exchange(ref place, null) is { } scratch) return scratch;
        }

        return new PageScratch();
    }

    public void Return(PageScratch scratch)
    {
        scratch.Trim();
        var first = Environment.CurrentManagedThreadId;
        for (var i = 0; i < Kept; i++)
        {
            ref var place = ref _free[(first + i) % Kept];
            if (place is null && Interlocked.CompareExchange(ref place, scratch, null) is null) return;
        }

        scratch.Dispose();
    }

    public void Dispose()
    {
        for (var i = 0; i < Kept; i++) Interlocked.Exchange(ref _free[i], null)?.Dispose();
    }
}
