using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <summary>
/// The userfaultfd of a post-copy migration. This process registers the memory with it; the front end has a duplicate, by which it learns which pages
/// are missed, and wakes who waits when it has put them into the memory's file. Dispose of it after the regions. For the thread that executes requests.
/// </summary>
internal sealed class VhostUserPostcopy : IRegionHolder, IDisposable
{
    private const ulong Features = Interop.Userfaultfd.UFFD_FEATURE_MISSING_SHMEM | Interop.Userfaultfd.UFFD_FEATURE_MISSING_HUGETLBFS;

    private readonly List<int> _held = [];
    private volatile bool _isListening;
    private volatile bool _awaitsAck;
    private volatile bool _ended;

    /// <exception cref="GuestMemoryException">UffdDenied, UffdUnsupported.</exception>
    public VhostUserPostcopy() => Userfaultfd = Interop.Userfaultfd.Create(Features);

    /// <summary>Whether this process can have such a userfaultfd: one that also takes the kernel's own accesses.</summary>
    public static bool IsSupported => Interop.Userfaultfd.TryProbe(out var features) == 0 && (features & Features) == Features;

    public SafeDescriptor Userfaultfd { get; }

    /// <summary>Whether memory that comes is registered. Also read by other threads.</summary>
    public bool IsListening
    {
        get => _isListening;
        set => _isListening = value;
    }

    /// <summary>Whether the front end has still to say that it provides the pages of the memory that came last. Also read by other threads.</summary>
    public bool AwaitsAck => _awaitsAck;

    string IRegionHolder.Description => "the front end that migrates the VM";

    bool IRegionHolder.IsLive => !_ended;

    bool IRegionHolder.ProvidesPages => true;

    /// <summary>Registers regions that nothing has touched. Where this fails the caller releases them.</summary>
    /// <exception cref="GuestMemoryException">UffdRegisterFailed.</exception>
    public void Watch(IEnumerable<GuestMemoryRegion> regions)
    {
        if (!IsListening) return;
        foreach (var region in regions)
        {
            var mapping = region.GetMmapRegion();
            mapping.AddHolder(this);
            mapping.Register(Userfaultfd, region.ToString(), Interop.Userfaultfd.UFFDIO_REGISTER_MODE_MISSING);
        }
    }

    /// <summary>The memory has changed: what was stopped for that goes on when the front end says that it provides the pages.</summary>
    /// <param name="stopped">The virtqueues that were stopped.</param>
    public void Await(IEnumerable<int> stopped)
    {
        if (!IsListening) return;
        _held.AddRange(stopped);
        _awaitsAck = true;
    }

    /// <summary>The front end provides the pages; the virtqueues that were stopped.</summary>
    public int[] TakeHeld()
    {
        int[] held = [.. _held];
        _held.Clear();
        _awaitsAck = false;
        return held;
    }

    /// <summary>Every page has come: accesses do not wait any more.</summary>
    public void End(IEnumerable<GuestMemoryRegion> regions)
    {
        foreach (var region in regions)
        {
            var mapping = region.GetMmapRegion();
            try
            {
                mapping.Unregister(Userfaultfd);
            }
            catch (GuestMemoryException) when (mapping.IsDisposed)
            {
                // Its release has ended that.
            }

            mapping.RemoveHolder(this);
        }

        Dispose();
    }

    void IRegionHolder.Release(MmapRegion region)
    {
        try
        {
            region.Withdraw(Userfaultfd);
        }
        catch (ObjectDisposedException)
        {
            // The migration has ended meanwhile: no page is missing.
        }
    }

    public void Dispose()
    {
        _ended = true;
        Userfaultfd.Dispose();
    }
}
