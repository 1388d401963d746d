using System.Diagnostics;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// An image that a page-fault handler serves, as it was at one moment: <see cref="UffdHandler.Images"/> gives it anew. Safe from any thread.
/// </summary>
public sealed class UffdImage
{
    private static readonly TimeSpan s_removeTimeout = TimeSpan.FromSeconds(30);
    private static readonly TimeSpan s_pause = TimeSpan.FromMilliseconds(10);

    private readonly UffdImageStatus _status;

    internal UffdImage(UffdHandler handler, UffdImageStatus status)
    {
        Handler = handler;
        _status = status;
    }

    /// <summary>The name, which no other image of its handler has.</summary>
    public string Name => _status.Options.Name;

    /// <summary>Where VMMs connect whose VMs have this memory.</summary>
    public string SocketPath => _status.Options.SocketPath;

    /// <summary>The file.</summary>
    public string MemoryPath => _status.Options.MemoryPath;

    /// <summary>The layers above it, the oldest first.</summary>
    public IReadOnlyList<string> LayerPaths => _status.Options.LayerPaths;

    /// <summary>The record of touches that is written; null where none is.</summary>
    public string? RecordPath => _status.Options.RecordPath;

    /// <summary>The record that is replayed; null where none is.</summary>
    public string? ReplayPath => _status.Options.ReplayPath;

    /// <summary>What the handler does with it.</summary>
    public UffdImageState State => _status.State;

    /// <summary>VMs that are served from it.</summary>
    public int ConnectionCount => _status.ConnectionCount;

    /// <summary>Why it cannot be served; null where it can.</summary>
    public string? Error => _status.Error;

    // Not a property that is seen: it has the image among its own.
    internal UffdHandler Handler { get; }

    /// <summary>The handler that serves it.</summary>
    public UffdHandler GetHandler() => Handler;

    /// <summary>
    /// Takes it away from its handler: no VM can connect any more, and the socket's file is removed. Returns when that is done; the image's files are closed a moment later. The last
    /// image of a handler cannot be removed; the handler is stopped instead.
    /// </summary>
    /// <param name="force">Gives up the VMs that are served from it, each as its OnError says (where that is Stop, its missing pages are poisoned).</param>
    /// <param name="cancellation">Ends the wait; the image is removed all the same.</param>
    /// <exception cref="GuestMemoryException">VmsInService: VMs are served from it, and it is not forced; UffdImageNotFound; ValueNotSupported: it is the last one; ControlFailed: its VMs were not given up within 30 s.</exception>
    /// <exception cref="OperationCanceledException">Cancelled before it was removed.</exception>
    public void Remove(bool force = false, CancellationToken cancellation = default)
    {
        Handler.RemoveImage(Name, force);
        for (var started = Stopwatch.GetTimestamp(); Handler.Images.Any(image => image.Name == Name && image.State == UffdImageState.Removing);)
        {
            if (Stopwatch.GetElapsedTime(started) > s_removeTimeout)
                throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"VMs of the image '{Name}' are still served {s_removeTimeout.TotalSeconds:0} s after it was removed.");
            if (cancellation.WaitHandle.WaitOne(s_pause)) cancellation.ThrowIfCancellationRequested();
        }
    }

    /// <summary>The name.</summary>
    public override string ToString() => Name;

    internal static GuestMemoryException NotFound(string name, string place) =>
        new(GuestMemoryError.UffdImageNotFound, $"The handler at {place} serves no image '{name}' (any more).");

    internal static GuestMemoryException IsLast(string name) =>
        new(GuestMemoryError.ValueNotSupported, $"'{name}' is the only image of its handler. A handler without an image serves nothing: stop it, or add another image first.");

    internal static GuestMemoryException InService(string name, int count) =>
        new(GuestMemoryError.VmsInService, $"{count} VMs are served from the image '{name}', and would wait for their pages for ever without it. Stop them first, or have them given up (Force).");
}
