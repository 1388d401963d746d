using System.Net;
using System.Net.Sockets;

namespace GuestMemory.Core.Tests;

/// <summary>A web server that publishes a folder, and fails as it is told: what a real one does too seldom.</summary>
internal sealed class FaultyServer : IDisposable
{
    private readonly HttpListener _listener;
    private readonly string _folder;
    private readonly Task _serving;

    public FaultyServer(string folder)
    {
        _folder = folder;
        while (true)
        {
            var port = FreePort();
            _listener = new HttpListener();
            _listener.Prefixes.Add($"http://127.0.0.1:{port}/");
            try
            {
                _listener.Start();
                Address = $"http://127.0.0.1:{port}";
                break;
            }
            catch (HttpListenerException)
            {
                // Another program took it meanwhile.
            }
        }

        _serving = Task.Run(ServeAsync);
    }

    public string Address { get; }

    /// <summary>Answers a request, by its number from 0 on and its path; false where it is to be answered rightly.</summary>
    public Func<int, string, HttpListenerResponse, bool> Fault { get; set; } = static (_, _, _) => false;

    /// <summary>Whether ranges are not known.</summary>
    public bool IsWithoutRanges { get; set; }

    public int Requests { get; private set; }

    public static int FreePort()
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        return ((IPEndPoint)listener.LocalEndpoint).Port;
    }

    public void Dispose()
    {
        _listener.Stop();
        _serving.Wait(Host.Patience);
        _listener.Close();
    }

    private async Task ServeAsync()
    {
        while (_listener.IsListening)
        {
            try
            {
                var context = await _listener.GetContextAsync();
                var path = Uri.UnescapeDataString(context.Request.Url!.AbsolutePath);
                if (!Fault(Requests++, path, context.Response)) Answer(context, path);
                context.Response.Close();
            }
            catch (Exception exception) when (exception is HttpListenerException or ObjectDisposedException or InvalidOperationException)
            {
                // The client has gone, or the server is stopped.
            }
        }
    }

    private void Answer(HttpListenerContext context, string path)
    {
        var file = _folder + path;
        if (!File.Exists(file))
        {
            context.Response.StatusCode = 404;
            return;
        }

        var bytes = File.ReadAllBytes(file);
        if (context.Request.Headers["Range"] is { } range && !IsWithoutRanges)
        {
            var ends = range["bytes=".Length..].Split('-');
            var (from, to) = (int.Parse(ends[0]), Math.Min(int.Parse(ends[1]), bytes.Length - 1));
            if (from >= bytes.Length)
            {
                context.Response.StatusCode = 416;
                return;
            }

            context.Response.StatusCode = 206;
            context.Response.Headers["Content-Range"] = $"bytes {from}-{to}/{bytes.Length}";
            bytes = bytes[from..(to + 1)];
        }

        context.Response.ContentLength64 = bytes.Length;
        context.Response.OutputStream.Write(bytes);
    }
}
