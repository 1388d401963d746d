using System.Diagnostics;
using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Processes;

/// <summary>
/// A monitor of a running QEMU: QMP, one JSON document a line. QEMU serves one client at a time and lets others wait, so everything has a limit. What it says is another process's word.
/// </summary>
internal sealed partial class QemuMonitor : IDisposable
{
    private const int MaxLine = 16 << 20;
    private const int MaxRanges = 256;
    // A line of a view has an address range, a kind and a name.
    private const int MaxViewLine = 1024;
    private const int LookMilliseconds = 100;
    // A monitor that is free says its name at once.
    private static readonly TimeSpan s_greeting = TimeSpan.FromSeconds(1);
    // All of its answers together.
    private static readonly TimeSpan s_whole = TimeSpan.FromSeconds(10);

    private readonly SafeDescriptor _socket;
    private readonly string _path;
    private readonly CancellationToken _cancellation;
    private readonly long _started = Stopwatch.GetTimestamp();
    private readonly List<byte> _received = [];

    private QemuMonitor(SafeDescriptor socket, string path, CancellationToken cancellation) => (_socket, _path, _cancellation) = (socket, path, cancellation);

    private TimeSpan Left => s_whole - Stopwatch.GetElapsedTime(_started);

    /// <summary>Connects.</summary>
    /// <param name="path">The socket.</param>
    /// <param name="process">The process whose monitor it should be; 0 where that is not known.</param>
    /// <param name="cancellation">Ends waiting for the monitor, also later on.</param>
    /// <exception cref="GuestMemoryException">MonitorFailed; SocketPathTooLong.</exception>
    /// <exception cref="OperationCanceledException">The caller left.</exception>
    public static QemuMonitor Connect(string path, int process = 0, CancellationToken cancellation = default)
    {
        var socket = UnixSocket.Create(nonBlocking: true);
        try
        {
            var error = UnixSocket.TryConnect(socket, path);
            if (error != 0) throw Failed(path, error == Errno.EAGAIN ? "other clients wait for it already" : $"it cannot be connected to ({Errno.Name(error)})");
            // Who listens may be another than who serves, such as libvirt; another VMM is none of this one's.
            var listening = UnixSocket.PeerCredentials(socket).pid;
            if (process != 0 && listening != 0 && listening != process && AttachedProcess.IsVmm(listening)) throw Failed(path, $"it is that of process {listening}, another VMM than process {process}");
            var monitor = new QemuMonitor(socket, path, cancellation);
            using (var greeting = monitor.Receive(s_greeting, "another client has it, or the process stands still"))
            {
                if (!greeting.RootElement.TryGetProperty("QMP", out _)) throw Failed(path, "it is no QMP socket");
            }

            monitor.Execute("qmp_capabilities", null).Dispose();
            return monitor;
        }
        catch (Exception exception) when (exception is InvalidOperationException or RegexMatchTimeoutException)
        {
            socket.Dispose();
            throw Unreadable(path);
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    public void Dispose() => _socket.Dispose();

    /// <summary>Where the machine's memory lies in the guest and in the process; device memory and firmware are left out.</summary>
    /// <param name="options">The command line, which names the objects that are memory.</param>
    /// <exception cref="GuestMemoryException">MonitorFailed.</exception>
    public IReadOnlyList<GuestLayoutRange> GetLayout(QemuOptions options)
    {
        try
        {
            var ranges = ParseView(Ask("info mtree -f"), name => name.EndsWith(".ram", StringComparison.Ordinal) || options.Backends.ContainsKey(name), ThrowIfOver);
            if (ranges.Count == 0) throw Failed(_path, "it shows no memory of the machine");
            if (ranges.Count > MaxRanges) throw Failed(_path, $"it shows {ranges.Count} ranges of memory; more than {MaxRanges} are not looked at");
            return [.. ranges.Select(PlaceOf)];
        }
        catch (Exception exception) when (exception is InvalidOperationException or RegexMatchTimeoutException)
        {
            throw Unreadable(_path);
        }
    }

    private GuestLayoutRange PlaceOf((ulong Start, ulong Last) range)
    {
        if (range.Last - range.Start == ulong.MaxValue) throw Failed(_path, "it shows a range of memory that has every address");
        // A section begins and one ends there: it is memory.
        var address = HostAddressOf(range.Start);
        if (HostAddressOf(range.Last) - address != range.Last - range.Start) throw Failed(_path, $"the memory at 0x{range.Start:x} is in several places of the process");
        return new GuestLayoutRange(range.Start, range.Last - range.Start + 1, address);
    }

    /// <summary>The ranges of main memory in a flat view: sections of one block whose addresses keep their distance are one, also across a device or firmware that covers a part of it.</summary>
    /// <param name="text">The answer to <c>info mtree -f</c>.</param>
    /// <param name="isMain">Whether a block of that name is main memory.</param>
    /// <param name="check">Called for each line; may throw.</param>
    internal static IReadOnlyList<(ulong Start, ulong Last)> ParseView(string text, Func<string, bool> isMain, Action? check = null)
    {
        var found = new Dictionary<(string Name, ulong Delta), (ulong Start, ulong Last)>();
        var isSystem = false;
        foreach (var line in text.Split('\n'))
        {
            check?.Invoke();
            if (line.Length > MaxViewLine) continue;
            if (line.StartsWith("FlatView", StringComparison.Ordinal)) isSystem = false;
            if (line.Trim().StartsWith("AS \"memory\"", StringComparison.Ordinal)) isSystem = true;
            if (!isSystem || Section().Match(line.TrimEnd('\r')) is not { Success: true } match) continue;
            var (start, last) = (Hex(match.Groups["start"].ValueSpan), Hex(match.Groups["last"].ValueSpan));
            var name = match.Groups["name"].Value;
            if (match.Groups["kind"].Value is not ("ram" or "rom") || last < start || !isMain(name)) continue;
            var offset = match.Groups["offset"] is { Success: true } group ? Hex(group.ValueSpan) : 0;
            var key = (name, unchecked(start - offset));
            found[key] = found.TryGetValue(key, out var before) ? (Math.Min(before.Start, start), Math.Max(before.Last, last)) : (start, last);
        }

        return [.. found.Values.OrderBy(static range => range.Start)];
    }

    private static ulong Hex(ReadOnlySpan<char> text) => ulong.Parse(text, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);

    private ulong HostAddressOf(ulong guestAddress)
    {
        var answer = Ask($"gpa2hva 0x{guestAddress:x}");
        return HostAddress().Match(answer) is { Success: true } match && ulong.TryParse(match.Groups["address"].ValueSpan, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out var address)
            ? address : throw Failed(_path, $"it does not say where guest address 0x{guestAddress:x} is: {JsonErrorText.Of(new FormatException(answer.Trim()))}");
    }

    private string Ask(string command)
    {
        using var answer = Execute("human-monitor-command", command);
        return answer.RootElement.GetProperty("return") is { ValueKind: JsonValueKind.String } text ? text.GetString()! : throw Failed(_path, "its answer is no text");
    }

    private JsonDocument Execute(string command, string? line)
    {
        var request = Encoding.UTF8.GetBytes(line is null ? $"{{\"execute\":\"{command}\"}}\n" : $"{{\"execute\":\"{command}\",\"arguments\":{{\"command-line\":\"{line}\"}}}}\n");
        if (UnixSocket.TrySend(_socket, request, []) != request.Length) throw Failed(_path, "it takes no command");
        while (true)
        {
            var answer = Receive(s_whole, "it does not answer");
            if (answer.RootElement.TryGetProperty("return", out _)) return answer;
            using (answer)
            {
                // Events come in between.
                if (answer.RootElement.TryGetProperty("error", out var error)) throw Failed(_path, $"it refuses {command}: {JsonErrorText.Of(new FormatException(error.ToString()))}");
            }
        }
    }

    private JsonDocument Receive(TimeSpan limit, string why)
    {
        var started = Stopwatch.GetTimestamp();
        var buffer = new byte[64 << 10];
        var searched = 0;
        while (true)
        {
            ThrowIfOver();
            var end = _received.IndexOf((byte)'\n', searched);
            if (end >= 0)
            {
                var line = _received[..end].ToArray();
                _received.RemoveRange(0, end + 1);
                try
                {
                    return JsonDocument.Parse(line) is { RootElement.ValueKind: JsonValueKind.Object } document ? document : throw Failed(_path, "it is no QMP socket");
                }
                catch (JsonException)
                {
                    throw Failed(_path, "it is no QMP socket");
                }
            }

            searched = _received.Count;
            if (searched > MaxLine) throw Failed(_path, "its answer does not end");
            var left = limit - Stopwatch.GetElapsedTime(started);
            if (Left < left) left = Left;
            if (left <= TimeSpan.Zero) throw Failed(_path, why);
            int ready;
            using (var lease = new DescriptorLease(_socket))
            {
                Span<PollFd> entry = [new PollFd { fd = lease.Number, events = Poll.POLLIN }];
                ready = Poll.Wait(entry, Math.Min((int)left.TotalMilliseconds + 1, LookMilliseconds));
            }

            if (ready == 0) continue;
            var count = UnixSocket.TryReceive(_socket, buffer, [], out _, room: 0);
            if (count == -Errno.EAGAIN) continue;
            if (count <= 0) throw Failed(_path, "it closed the connection");
            _received.AddRange(buffer.AsSpan(0, (int)count));
        }
    }

    /// <exception cref="GuestMemoryException">MonitorFailed: it has had its time.</exception>
    /// <exception cref="OperationCanceledException">The caller left.</exception>
    private void ThrowIfOver()
    {
        _cancellation.ThrowIfCancellationRequested();
        if (Left <= TimeSpan.Zero) throw Failed(_path, $"it did not say what was asked within {s_whole.TotalSeconds:0} s");
    }

    private static GuestMemoryException Unreadable(string path) => Failed(path, "its answer is no text that can be read");

    private static GuestMemoryException Failed(string path, string why) => new(GuestMemoryError.MonitorFailed, $"The monitor at {path} cannot be used: {why}.");

    [GeneratedRegex(@"^\s+(?<start>[0-9a-f]{1,16})-(?<last>[0-9a-f]{1,16}) \(prio -?\d+, (?<kind>[^)]*)\): (?<name>.*?)( @(?<offset>[0-9a-f]{1,16}))?( KVM)?$", RegexOptions.ExplicitCapture, matchTimeoutMilliseconds: 1000)]
    private static partial Regex Section();

    [GeneratedRegex(@" is 0x(?<address>[0-9a-f]{1,16})\s*$", RegexOptions.ExplicitCapture, matchTimeoutMilliseconds: 1000)]
    private static partial Regex HostAddress();
}
