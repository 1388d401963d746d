namespace GuestMemory.Core.Userfault;

/// <summary>A VM in the queue of those that are filled ahead. All of it is written under the lock of the <see cref="UffdFiller"/>.</summary>
internal sealed class UffdFill(UffdVm vm)
{
    // Read without the lock by the service that waits for it.
    private volatile bool _isUnderWay;

    public UffdVm Vm => vm;

    /// <summary>Whether one of the filler's threads fills a piece now.</summary>
    public bool IsUnderWay
    {
        get => _isUnderWay;
        set => _isUnderWay = value;
    }

    /// <summary>Whether it is to be filled no more.</summary>
    public bool IsRemoved { get; set; }

    /// <summary>Not before this timestamp; 0 for now.</summary>
    public long Due { get; set; }

    /// <summary>How often in a row it could not be filled because its events were being read. For the thread that fills it.</summary>
    public int Busy { get; set; }

    /// <summary>The bytes that its next piece may bring because of the rate; less than a page is a page.</summary>
    public ulong Most { get; set; }

    /// <summary>The bytes that its next piece may bring because of the limit, and not one more.</summary>
    public ulong Room { get; set; }

    /// <summary>The bytes of the limit that are set aside for the piece that is under way.</summary>
    public ulong SetAside { get; set; }
}
