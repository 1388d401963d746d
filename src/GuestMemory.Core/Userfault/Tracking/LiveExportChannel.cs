using System.Diagnostics;
using System.Text.Json.Serialization.Metadata;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// The worker's end of an export of a VM that runs. It ends with the connection: where who exports is gone the VM goes on as before. What
/// is not asked for in its order fails.
/// </summary>
internal sealed class LiveExportChannel : IDisposable
{
    // Who does not read what so many lines say has gone.
    private static readonly TimeSpan s_interval = TimeSpan.FromMilliseconds(200);

    private readonly SafeDescriptor _socket;
    private readonly Func<SafeFileHandle, UffdLiveExport> _begin;
    private readonly JsonLines _lines;
    private SafeFileHandle? _output;
    private UffdLiveExport? _export;

    /// <param name="socket">The connection, non-blocking; taken over.</param>
    /// <param name="begin">Begins the export to a file.</param>
    public LiveExportChannel(SafeDescriptor socket, Func<SafeFileHandle, UffdLiveExport> begin)
    {
        (_socket, _begin) = (socket, begin);
        _lines = new JsonLines(socket, keepsDescriptor: true);
    }

    /// <summary>Answers until the connection ends.</summary>
    public void Serve()
    {
        while (Wait(_socket, _lines, LiveJson.Default.LiveRequest, CancellationToken.None) is { } request)
        {
            if (!Send(Answer(request.Request))) return;
        }
    }

    /// <summary>The next line; null at the end.</summary>
    public static T? Wait<T>(SafeDescriptor socket, JsonLines lines, JsonTypeInfo<T> type, CancellationToken cancellation)
        where T : class
    {
        const int Slice = 50;
        while (true)
        {
            if (lines.TryTake(type, out var line)) return line;
            if (lines.IsEnded) return null;
            cancellation.ThrowIfCancellationRequested();
            Span<PollFd> entry = [new PollFd { fd = socket.Number, events = Poll.POLLIN }];
            _ = Poll.Wait(entry, cancellation.CanBeCanceled ? Slice : -1);
        }
    }

    public void Dispose()
    {
        _export?.Dispose();
        _output?.Dispose();
        _lines.TakeDescriptor()?.Dispose();
        _socket.Dispose();
    }

    private LiveReply Answer(string request)
    {
        try
        {
            switch (request)
            {
                case LiveRequest.Begin when _export is null && _lines.TakeDescriptor() is { } file:
                    _output = new SafeFileHandle(file.Number, ownsHandle: true);
                    file.SetHandleAsInvalid();
                    _export = _begin(_output);
                    return new LiveReply { IsDone = true };
                case LiveRequest.Protect when _export is { } export:
                    export.Protect(CancellationToken.None);
                    return new LiveReply { IsDone = true };
                case LiveRequest.Take when _export is { } export:
                    export.Take();
                    return new LiveReply { IsDone = true };
                case LiveRequest.Sweep when _export is { } export:
                    return Sweep(export);
                default:
                    throw new GuestMemoryException(GuestMemoryError.ControlFailed, "An export knows the requests begin (with a file), protect, take and sweep, in this order.");
            }
        }
        catch (GuestMemoryException exception)
        {
            return new LiveReply { ErrorId = exception.Error.ToString(), Message = exception.Message };
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return new LiveReply { ErrorId = "", Message = exception.Message, ErrorNumber = exception.HResult };
        }
    }

    private LiveReply Sweep(UffdLiveExport export)
    {
        var told = Stopwatch.GetTimestamp();
        var (bytes, pages) = export.Sweep(copied =>
        {
            var isTime = Stopwatch.GetElapsedTime(told) >= s_interval;
            if (isTime) told = Stopwatch.GetTimestamp();
            if (UnixSocket.HasPeerEnded(_socket) || (isTime && !Send(new LiveReply { Copied = copied }))) throw new GuestMemoryException(GuestMemoryError.PeerClosed, "Who exports the VM's memory has gone.");
        }, CancellationToken.None);
        return new LiveReply { IsDone = true, Bytes = bytes, Pages = pages };
    }

    private bool Send(LiveReply reply) => _lines.TrySend(reply, LiveJson.Default.LiveReply);
}
