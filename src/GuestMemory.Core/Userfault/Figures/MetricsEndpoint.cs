using System.Net;
using System.Net.Sockets;
using System.Text;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Answers <c>GET /metrics</c> on a loopback port or a Unix socket, one connection after the other, each within two seconds. The
/// runtime that the library needs has no HTTP server, and this much is not worth a package.
/// </summary>
public sealed class MetricsEndpoint : IDisposable
{
    private const int MaxRequest = 8192;
    private const int Pause = 10;
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(2);

    private readonly Func<string> _metrics;
    private readonly string _type;
    private readonly Socket _listener;
    private readonly Thread _thread;
    private readonly string? _path;
    private volatile bool _disposed;

    private MetricsEndpoint(Socket listener, string? path, string type, Func<string> metrics)
    {
        _listener = listener;
        _path = path;
        _type = type;
        _metrics = metrics;
        _thread = new Thread(Run) { IsBackground = true, Name = "uffd-metrics" };
        _thread.Start();
    }

    /// <summary>The port; null on a Unix socket.</summary>
    public int? Port => (_listener.LocalEndPoint as IPEndPoint)?.Port;

    /// <summary>Listens at 127.0.0.1.</summary>
    /// <param name="port">The port; 0 for one that is free.</param>
    /// <param name="type">The media type of the answer.</param>
    /// <param name="metrics">Gives the answer; called on a thread of this object.</param>
    /// <exception cref="GuestMemoryException">PortInUse.</exception>
    public static MetricsEndpoint OnPort(int port, string type, Func<string> metrics) =>
        Open(new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp), new IPEndPoint(IPAddress.Loopback, port), null, type, metrics);

    /// <summary>Listens at a Unix socket, for this user alone.</summary>
    /// <param name="path">The path; nothing may be there.</param>
    /// <param name="type">The media type of the answer.</param>
    /// <param name="metrics">Gives the answer; called on a thread of this object.</param>
    /// <exception cref="GuestMemoryException">SocketInUse; SocketPathTooLong.</exception>
    public static MetricsEndpoint AtPath(string path, string type, Func<string> metrics)
    {
        Interop.UnixSocket.CheckPath(path);
        return Open(new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified), new UnixDomainSocketEndPoint(path), path, type, metrics);
    }

    /// <summary>Goes on at a listening socket that another process made.</summary>
    /// <param name="listener">The socket; taken over.</param>
    /// <param name="path">Its path, which is removed with it; null where it is a port.</param>
    /// <param name="type">The media type of the answer.</param>
    /// <param name="metrics">Gives the answer; called on a thread of this object.</param>
    internal static MetricsEndpoint Adopt(Interop.SafeDescriptor listener, string? path, string type, Func<string> metrics)
    {
        // The socket closes the number; the descriptor must not.
        var handle = new SafeSocketHandle(listener.Number, ownsHandle: true);
        listener.SetHandleAsInvalid();
        return new MetricsEndpoint(new Socket(handle), path, type, metrics);
    }

    /// <summary>A second descriptor of the listening socket, by which another process can go on with it.</summary>
    internal Interop.SafeDescriptor Duplicate()
    {
        using var copy = Interop.Descriptor.Duplicate(_listener.SafeHandle);
        var descriptor = new Interop.SafeDescriptor((int)copy.DangerousGetHandle());
        copy.SetHandleAsInvalid();
        return descriptor;
    }

    /// <summary>Closes the socket; an answer that is under way ends first.</summary>
    public void Dispose()
    {
        if (_disposed) return;
        _disposed = true;
        _listener.Dispose();
        _thread.Join();
        if (_path is not null) UffdRuntimeFolder.Remove(_path);
    }

    private static MetricsEndpoint Open(Socket listener, EndPoint place, string? path, string type, Func<string> metrics)
    {
        try
        {
            listener.Bind(place);
            if (path is not null) _ = Interop.FileStatus.TryChangeMode(path, 0b110_000_000);
            listener.Listen(16);
            return new MetricsEndpoint(listener, path, type, metrics);
        }
        catch (SocketException exception)
        {
            listener.Dispose();
            throw new GuestMemoryException(path is null ? GuestMemoryError.PortInUse : GuestMemoryError.SocketInUse,
                $"Metrics cannot be served at {path ?? place.ToString()}: {exception.Message}. Give another place.", exception);
        }
    }

    private void Run()
    {
        while (!_disposed)
        {
            try
            {
                using var client = _listener.Accept();
                client.ReceiveTimeout = client.SendTimeout = (int)s_patience.TotalMilliseconds;
                Answer(client, _type, _metrics);
            }
            catch (SocketException)
            {
                // Closed here, or there; who asks too slowly is dropped. Where no descriptor is left the next try fails at once.
                if (!_disposed) Thread.Sleep(Pause);
            }
            catch (ObjectDisposedException)
            {
                return;
            }
#pragma warning disable CA1031 // A background thread must not end the process.
            catch (Exception)
            {
                // There is no answer now.
                if (_disposed) return;
            }
#pragma warning restore CA1031
        }
    }

    /// <summary>Reads a request and answers it; one that is too long, too slow or broken off gets no answer.</summary>
    internal static void Answer(Socket client, string type, Func<string> metrics)
    {
        var request = new byte[MaxRequest];
        var length = 0;
        var started = System.Diagnostics.Stopwatch.StartNew();
        while (request.AsSpan(0, length).IndexOf("\r\n\r\n"u8) < 0)
        {
            if (length == request.Length || started.Elapsed > s_patience) return;
            var received = client.Receive(request.AsSpan(length));
            if (received == 0) return;
            length += received;
        }

        var isGet = request.AsSpan().StartsWith("GET "u8);
        var isMetrics = isGet && (request.AsSpan(4).StartsWith("/metrics "u8) || request.AsSpan(4).StartsWith("/metrics?"u8));
        var body = isMetrics ? metrics() : isGet ? "There is only /metrics here.\n" : "Only GET is answered.\n";
        var status = isMetrics ? "200 OK" : isGet ? "404 Not Found" : "405 Method Not Allowed";
        var bytes = Encoding.UTF8.GetBytes(body);
        var head = $"HTTP/1.1 {status}\r\nContent-Type: {(isMetrics ? type : "text/plain")}\r\nContent-Length: {bytes.Length}\r\nConnection: close\r\n\r\n";
        Send(client, Encoding.ASCII.GetBytes(head));
        Send(client, bytes);
        client.Shutdown(SocketShutdown.Send);
    }

    private static void Send(Socket client, ReadOnlySpan<byte> bytes)
    {
        while (!bytes.IsEmpty) bytes = bytes[client.Send(bytes)..];
    }
}
