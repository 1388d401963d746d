using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// The parts of the image that the faults of one VM wait for: a bounded number, so that a VM with many processors does not take more than
/// its share of the fetchers. The VM's service starts and ends fetches; what is said of the fetchers happens under their lock.
/// </summary>
/// <param name="fetchers">Who fetches.</param>
/// <param name="source">The image that the VM is served from.</param>
/// <param name="wake">Signalled when a fetch is done.</param>
internal sealed class UffdFetches(UffdFetchers fetchers, PageSource source, SafeDescriptor wake)
{
    private const int Most = 16;

    // Made with the first fault that needs one. Of the service's thread; the fetchers read it when something waits.
    private UffdFetch[] _fetches = [];

    // Of the fetchers.
    private int _next;

    /// <summary>For the fetchers: what the parts are of.</summary>
    public PageSource Source => source;

    /// <summary>For the fetchers: whether it stands in their queue.</summary>
    public bool IsQueued { get; set; }

    /// <summary>For the fetchers: how many of its fetches are under way.</summary>
    public int UnderWay { get; set; }

    /// <summary>For the fetchers: whether something waits.</summary>
    public bool HasWaiting => Array.Exists(_fetches, static fetch => fetch.State == UffdFetch.Step.Waiting);

    /// <summary>Has a part of the image brought into memory; null where as many are on their way as may be.</summary>
    public UffdFetch? TryStart(ulong offset, ulong length)
    {
        if (_fetches.Length == 0) _fetches = [.. Enumerable.Range(0, Most).Select(static _ => new UffdFetch())];
        foreach (var fetch in _fetches)
        {
            if (fetch.State != UffdFetch.Step.Free) continue;
            (fetch.Offset, fetch.Length) = (offset, length);
            fetchers.Add(this, fetch);
            return fetch;
        }

        return null;
    }

    /// <summary>Waits until nothing is on its way. The service starts none afterwards.</summary>
    public void End() => fetchers.Remove(this);

    /// <summary>For the fetchers: the next one that waits, in turn.</summary>
    public UffdFetch? Next()
    {
        for (var i = 0; i < _fetches.Length; i++)
        {
            _next = (_next + 1) % _fetches.Length;
            var fetch = _fetches[_next];
            if (fetch.State == UffdFetch.Step.Waiting) return fetch;
        }

        return null;
    }

    /// <summary>For the fetchers: nothing that waits is fetched any more; how many that were.</summary>
    public int Drop()
    {
        var dropped = 0;
        foreach (var fetch in _fetches)
        {
            if (fetch.State != UffdFetch.Step.Waiting) continue;
            fetch.State = UffdFetch.Step.Free;
            dropped++;
        }

        return dropped;
    }

    /// <summary>For the fetchers: the service has something to look at.</summary>
    public void Wake() => EventFd.Signal(wake);
}
