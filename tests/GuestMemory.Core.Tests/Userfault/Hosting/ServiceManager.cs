using System.Diagnostics;
using System.Globalization;
using System.Net.Sockets;
using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>What systemd does for a service of Type=notify with a descriptor store: a socket that it is told things at, and what it keeps. A fake: no systemd runs where tests run.</summary>
internal sealed class ServiceManager : IDisposable
{
    private readonly Socket _socket = new(AddressFamily.Unix, SocketType.Dgram, ProtocolType.Unspecified);
    private readonly string _path;

    public ServiceManager(string path)
    {
        _path = path;
        _socket.Bind(new UnixDomainSocketEndPoint(path));
    }

    /// <summary>How long the service may be silent; null for ever.</summary>
    public TimeSpan? Watchdog { get; init; }

    /// <summary>The state that processes which are started from now on are brought into (<see cref="UffdDebug"/>); null for none.</summary>
    public string? Debug { get; set; }

    /// <summary>What was told so far.</summary>
    public List<string> Told { get; } = [];

    /// <summary>What the service wrote to its standard error.</summary>
    public string Log => File.ReadAllText(_path + ".log");

    /// <summary>What is kept, by name.</summary>
    public List<(string Name, SafeDescriptor Descriptor)> Kept { get; } = [];

    /// <summary>The names of what is kept, in the order of the alphabet.</summary>
    public string KeptNames => string.Join(' ', Kept.Select(item => item.Name).Order(StringComparer.Ordinal));

    /// <summary>Starts the handler's program with the descriptors that are kept, in the way sd_listen_fds(3) describes.</summary>
    public int Start(string runtimeFolder, params string[] arguments)
    {
        var start = UffdHostProcess.Command();
        using var nothing = File.OpenHandle("/dev/null", FileMode.Open, FileAccess.ReadWrite);
        using var log = File.OpenHandle(_path + ".log", FileMode.Append, FileAccess.Write, FileShare.ReadWrite);
        var (none, errors) = ((int)nothing.DangerousGetHandle(), (int)log.DangerousGetHandle());
        string[] command = ["sh", "-c", "export LISTEN_PID=$$; exec \"$@\"", "sh", start.FileName, .. start.ArgumentList, .. arguments];
        string[] environment =
        [
            .. Environment.GetEnvironmentVariables().Cast<System.Collections.DictionaryEntry>().Select(entry => $"{entry.Key}={entry.Value}"),
            $"NOTIFY_SOCKET={_path}", $"{UffdRuntimeFolder.Variable}={runtimeFolder}", "DOTNET_EnableDiagnostics_IPC=0",
            .. Debug is { } debug ? [$"{UffdDebug.Variable}={debug}"] : Array.Empty<string>(),
            .. Watchdog is { } limit ? [$"WATCHDOG_USEC={(long)limit.TotalMicroseconds}"] : Array.Empty<string>(),
            .. Kept.Count == 0 ? Array.Empty<string>() : ["LISTEN_FDS=" + Kept.Count.ToString(CultureInfo.InvariantCulture), "LISTEN_FDNAMES=" + string.Join(':', Kept.Select(item => item.Name))],
        ];
        return Spawn.Start("/bin/sh", command, environment, [none, errors, errors, .. Kept.Select(item => item.Descriptor.Number)]);
    }

    /// <summary>As systemd ends a service whose main process has died: all of it.</summary>
    public static void Kill(int supervisor)
    {
        var children = Children(supervisor);
        End(supervisor, 9);
        foreach (var child in children) End(child, 9);
    }

    /// <summary>Reads until something was told, and keeps and gives up what it is told to.</summary>
    public bool WasTold(Func<string, bool> what, int seconds = 100)
    {
        for (var clock = Stopwatch.StartNew(); ;)
        {
            Listen();
            if (Told.Exists(text => what(text))) return true;
            if (clock.Elapsed.TotalSeconds >= seconds) return false;
            // Told at once, so that a test can act before what comes next.
            Span<PollFd> entry = [new PollFd { fd = (int)_socket.Handle, events = Poll.POLLIN }];
            _ = Poll.Wait(entry, 10);
        }
    }

    public void Dispose()
    {
        foreach (var (_, descriptor) in Kept) descriptor.Dispose();
        _socket.Dispose();
    }

    private void Listen()
    {
        var buffer = new byte[4096];
        var descriptors = new List<SafeDescriptor>();
        using var socket = new SafeDescriptor(Duplicate());
        while (UnixSocket.TryReceive(socket, buffer, descriptors, out _) is var received and > 0)
        {
            var text = Encoding.UTF8.GetString(buffer, 0, (int)received);
            Told.Add(text);
            var name = text.Split('\n').FirstOrDefault(line => line.StartsWith("FDNAME=", StringComparison.Ordinal))?[7..] ?? "";
            if (text.StartsWith("FDSTORE=1", StringComparison.Ordinal)) Kept.AddRange(descriptors.Select(descriptor => (name, descriptor)));
            if (text.StartsWith("FDSTOREREMOVE=1", StringComparison.Ordinal))
            {
                foreach (var item in Kept.FindAll(item => item.Name == name)) item.Descriptor.Dispose();
                Kept.RemoveAll(item => item.Name == name);
            }

            descriptors.Clear();
        }
    }

    private int Duplicate() => Fcntl.Duplicate((int)_socket.Handle);
}

/// <summary><c>dup(2)</c>, for a socket of .NET's that must stay its own, and <c>fcntl(2)</c>, for what a peer may do to what it shares.</summary>
internal static partial class Fcntl
{
    public static int Duplicate(int number) => dup(number);

    public static int MakeBlocking(int number) => fcntl(number, 4 /* F_SETFL */, 0);

    [System.Runtime.InteropServices.LibraryImport("libc")]
    private static partial int dup(int oldfd);

    [System.Runtime.InteropServices.LibraryImport("libc")]
    private static partial int fcntl(int fd, int cmd, int arg);
}
