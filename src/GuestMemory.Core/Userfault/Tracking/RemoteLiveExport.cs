using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>An export of a VM that the worker of another process serves, over a connection to that worker. Where the worker dies, or the handler is upgraded, it fails and the VM goes on.</summary>
internal sealed class RemoteLiveExport : UffdLiveExport
{
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(5);

    private readonly SafeDescriptor _socket;
    private readonly JsonLines _lines;

    /// <param name="socket">The connection, non-blocking; taken over, also where it fails.</param>
    /// <param name="output">The file, as long as the memory and all zeros; stays the caller's.</param>
    /// <exception cref="GuestMemoryException">LiveUnsupported, LiveBusy; LiveFailed: the worker has ended.</exception>
    public RemoteLiveExport(SafeDescriptor socket, SafeFileHandle output)
    {
        _socket = socket;
        _lines = new JsonLines(socket);
        try
        {
            using var lease = new DescriptorLease(output);
            using var file = new SafeDescriptor(lease.Number);
            try
            {
                _ = Ask(LiveRequest.Begin, null, CancellationToken.None, file);
            }
            finally
            {
                // It is the caller's.
                file.SetHandleAsInvalid();
            }
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    public override void Protect(CancellationToken cancellation) => Ask(LiveRequest.Protect, null, cancellation);

    public override void Take() => Ask(LiveRequest.Take, null, CancellationToken.None);

    public override (ulong Bytes, long Pages) Sweep(Action<ulong>? progress, CancellationToken cancellation)
    {
        var done = Ask(LiveRequest.Sweep, progress, cancellation);
        return (done.Bytes, done.Pages);
    }

    protected override void Dispose(bool disposing)
    {
        if (!disposing) return;
        try
        {
            // The worker hangs up when it has let go of the file, and the VM goes on as before.
            using var limit = new CancellationTokenSource(s_patience);
            UnixSocket.EndSending(_socket);
            while (LiveExportChannel.Wait(_socket, _lines, LiveJson.Default.LiveReply, limit.Token) is not null)
            {
                // What it said before.
            }
        }
        catch (Exception exception) when (exception is OperationCanceledException or GuestMemoryException)
        {
            // It hangs: the supervisor has another one serve.
        }

        _socket.Dispose();
    }

    private LiveReply Ask(string request, Action<ulong>? progress, CancellationToken cancellation, SafeDescriptor? file = null)
    {
        // Where that fails the connection has ended.
        _ = _lines.TrySend(new LiveRequest { Request = request }, LiveJson.Default.LiveRequest, file);
        while (true)
        {
            var reply = LiveExportChannel.Wait(_socket, _lines, LiveJson.Default.LiveReply, cancellation)
                ?? throw new GuestMemoryException(GuestMemoryError.LiveFailed, "The handler's worker that served the VM ended, or serves it no more. Export again.");
            if (reply.ErrorId == "") throw new IOException(reply.Message, reply.ErrorNumber);
            if (reply.ErrorId is not null) throw new UffdControlReply { ErrorId = reply.ErrorId, Message = reply.Message }.ToException();
            if (reply.IsDone) return reply;
            progress?.Invoke(reply.Copied);
        }
    }
}
