using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>How the VMs of a handler are served; the same for all of them.</summary>
internal sealed class UffdPolicy : IDisposable
{
    public UffdStrategy Strategy { get; init; } = UffdStrategy.OnDemand;

    /// <summary>The bytes of the aligned block that a fault brings in; 0 for the page alone.</summary>
    public ulong Window { get; init; }

    /// <summary>The bytes a second that fills may bring in; 0 for any number.</summary>
    public ulong FillRate { get; init; }

    /// <summary>The bytes that fills may bring in for all VMs; 0 for any number.</summary>
    public ulong MemoryLimit { get; init; }

    public UffdOnError OnError { get; init; }

    /// <summary>How long a page that cannot be read is tried again before <see cref="OnError"/> follows.</summary>
    public TimeSpan SourceTimeout { get; init; } = UffdHandlerOptions.DefaultSourceTimeout;

    /// <summary>Whether it is tracked what VMs write.</summary>
    public bool TrackDirty { get; init; }

    /// <summary>Notes the touches; null where nobody asked.</summary>
    public UffdRecorder? Recorder { get; init; }

    /// <summary>What comes first; null where nothing does.</summary>
    public UffdReplay? Replay { get; init; }

    /// <summary>Whether everything is brought in.</summary>
    public bool FillsAll => Strategy is UffdStrategy.Background or UffdStrategy.FaultAll;

    public void Dispose() => Recorder?.Dispose();

    /// <summary>How the options say that VMs of an image are served.</summary>
    /// <param name="options">The options.</param>
    /// <param name="image">The image.</param>
    /// <param name="source">Where the pages come from.</param>
    /// <param name="isSuccessor">Whether another process has begun.</param>
    /// <param name="failed">Called with what a successor goes on without.</param>
    /// <param name="replay">The file of ReplayPath where another process has opened it; null where this one does.</param>
    /// <param name="recorder">Makes what notes touches for another process to save; null where this one saves.</param>
    /// <exception cref="GuestMemoryException">ValueNotSupported: they contradict each other; or what is wrong with a record.</exception>
    public static UffdPolicy From(UffdHandlerOptions options, UffdImageOptions image, PageSource source, bool isSuccessor = false, Action<string>? failed = null, SafeFileHandle? replay = null, Func<UffdRecorder>? recorder = null)
    {
        if (!ulong.IsPow2(options.WindowSize) || options.WindowSize < HostPage.Size)
            throw Refuse($"A window of {options.WindowSize} bytes is not a power of two of at least one page, {HostPage.Size} bytes.");
        if (image.RecordPath is not null && options.Strategy is not (UffdStrategy.OnDemand or UffdStrategy.Background))
            throw Refuse($"A record needs the strategy OnDemand, where every first touch is a fault, or Background, where those are that come before the filler; the strategy is {options.Strategy}.");
        if (image.ReplayPath is null && options.Strategy == UffdStrategy.Replay)
            throw Refuse("The strategy Replay needs a record (ReplayPath), which a handler with a RecordPath writes.");
        if (image.ReplayPath is not null && options.Strategy is UffdStrategy.OnDemand or UffdStrategy.Window)
            throw Refuse($"A record is replayed with the strategies Replay, Background and FaultAll, not with {options.Strategy}.");
        if ((options.FillRate != 0 || options.MemoryLimit != 0) && options.Strategy is UffdStrategy.OnDemand or UffdStrategy.Window)
            throw Refuse($"A rate or a limit of what is filled (FillRate, MemoryLimit) needs the strategy Background, FaultAll or Replay; with {options.Strategy} nothing is filled without a fault.");
        if (options.SourceTimeout < TimeSpan.Zero || options.SourceTimeout > UffdHandlerOptions.MaxSourceTimeout)
            throw Refuse($"A page that cannot be read is tried again for 0 to {UffdHandlerOptions.MaxSourceTimeout.TotalSeconds:0} s (SourceTimeout), not for {options.SourceTimeout.TotalSeconds:0.###} s.");
        return new UffdPolicy
        {
            Strategy = options.Strategy,
            FillRate = options.FillRate,
            MemoryLimit = options.MemoryLimit,
            Window = options.Strategy == UffdStrategy.Window ? options.WindowSize : 0,
            OnError = options.OnError,
            SourceTimeout = options.SourceTimeout,
            TrackDirty = options.TrackDirty,
            Replay = image.ReplayPath is null ? null : LoadReplay(replay, image.ReplayPath, source.Length, isSuccessor ? failed : null),
            Recorder = image.RecordPath is null ? null : recorder is null ? Record(image.RecordPath, source.Length) : recorder(),
        };
    }

    private static UffdRecorder Record(string path, ulong imageLength)
    {
        var recorder = new UffdRecorder(UffdRecorder.CreateList(imageLength), imageLength, path);
        try
        {
            return recorder.Begin();
        }
        catch
        {
            recorder.Dispose();
            throw;
        }
    }

    private static UffdReplay? LoadReplay(SafeFileHandle? file, string path, ulong imageLength, Action<string>? failed)
    {
        try
        {
            return new UffdReplay(file is null ? TouchRecord.Load(path, imageLength) : TouchRecord.Load(file, path, imageLength), imageLength);
        }
        catch (GuestMemoryException exception) when (failed is not null)
        {
            // For a record VMs that run are not left: their pages come when they are touched.
            failed(exception.Message);
            return null;
        }
    }

    private static GuestMemoryException Refuse(string why) => new(GuestMemoryError.ValueNotSupported, why);
}
