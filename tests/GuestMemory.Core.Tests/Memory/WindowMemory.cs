namespace GuestMemory.Core.Tests;

/// <summary>
/// Memory without an address of its own, as Xen's grants that are mapped on demand: a memfd whose pages are mapped for each access,
/// with its protection, and unmapped after it.
/// </summary>
internal sealed class WindowMemory(ulong size) : VolatileMemory(size)
{
    private readonly SafeDescriptor _memfd = Memfd.CreateSealed("window", (long)HostPage.RoundUp(size, HostPage.Size), 0);
    private int _open;

    /// <summary>The windows that are open.</summary>
    public int Open => Volatile.Read(ref _open);

    public override bool MayWait => false;

    protected override nint Pin(ulong offset, ulong length, MemoryProtection access, out object? state, out int error)
    {
        var first = offset / HostPage.Size * HostPage.Size;
        using var lease = new DescriptorLease(_memfd);
        var window = Mman.TryMap((nuint)(offset - first + Math.Max(length, 1)), (int)access, Mman.MAP_SHARED, lease.Number, (long)first, out error);
        state = window;
        if (window is null) return 0;
        Interlocked.Increment(ref _open);
        return window.Address + (nint)(offset - first);
    }

    protected override void Unpin(nint address, ulong length, object? state)
    {
        ((SafeMapping)state!).Dispose();
        Interlocked.Decrement(ref _open);
    }

    public override void Release(bool force)
    {
        base.Release(force);
        _memfd.Dispose();
    }
}
