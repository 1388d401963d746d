using System.Diagnostics;
using System.Globalization;
using System.Text;
using GuestMemory.Core.Interop;

namespace GuestMemory.UffdHost;

/// <summary>
/// A service manager as sd_notify(3) and sd_listen_fds(3) describe it, where there is one: it hears what the handler does, keeps
/// its descriptors, and gives them back, and a listening socket, when it starts the handler (again).
/// </summary>
internal sealed class Systemd
{
    private const int FirstDescriptor = 3;
    internal const int MaxDescriptors = 65536;

    private readonly string? _notify = Take("NOTIFY_SOCKET");
    private readonly TimeSpan? _watchdog = WatchdogOf(Take("WATCHDOG_USEC"), Take("WATCHDOG_PID"), Environment.ProcessId);
    private long _aliveAt;
    private readonly Queue<(string Text, SafeDescriptor? Descriptor)> _pending = new();

    /// <summary>What came with this process, by name. Whoever takes one owns it.</summary>
    public List<(string Name, SafeDescriptor Descriptor)> Descriptors { get; } = Inherit();

    /// <summary>Whether descriptors can be kept; the manager decides how many (FileDescriptorStoreMax=).</summary>
    public bool IsThere => _notify is not null;

    /// <summary>Whether it does not hear this process yet: it knows another one as the service's main process.</summary>
    public bool IsHeld { get; set; }

    /// <summary>Whether something is still to be told, and may be.</summary>
    public bool HasPending => !IsHeld && _pending.Count > 0;

    /// <summary>The variables by which a program that takes over finds the service manager.</summary>
    public IEnumerable<string> Variables()
    {
        if (_notify is not null) yield return $"NOTIFY_SOCKET={_notify}";
        if (_watchdog is { } half) yield return string.Create(CultureInfo.InvariantCulture, $"WATCHDOG_USEC={(long)(half * 2).TotalMicroseconds}");
    }

    /// <summary>Milliseconds until it must hear again that this process runs; -1 where it does not ask for that (WatchdogSec=).</summary>
    public int WatchdogTimeout => IsHeld || _watchdog is not { } interval ? -1 : (int)Math.Clamp((interval - Stopwatch.GetElapsedTime(_aliveAt)).TotalMilliseconds, 0, int.MaxValue);

    /// <summary>Tells it where it is time that this process runs.</summary>
    public void KeepAlive()
    {
        if (WatchdogTimeout != 0) return;
        _aliveAt = Stopwatch.GetTimestamp();
        Send("WATCHDOG=1");
    }

    /// <summary>Tells it something: "READY=1", "STATUS=...".</summary>
    public void Notify(string state) => Send(state);

    /// <summary>Has it keep a descriptor under a name.</summary>
    // Without FDPOLL it would drop a descriptor whose other end is gone, and a later one of the same name would be another.
    public void Store(string name, SafeDescriptor descriptor) => Send($"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor);

    /// <summary>Has it close every descriptor of a name.</summary>
    public void Remove(string name) => Send($"FDSTOREREMOVE=1\nFDNAME={name}");

    /// <summary>Tells what could not be told yet, because the manager does not keep up; the handler never waits for it.</summary>
    public void Flush()
    {
        while (!IsHeld && _pending.TryPeek(out var next))
        {
            var error = TrySend(next.Text, next.Descriptor);
            if (error == Errno.EAGAIN) return;
            if (error != 0) Log.Lines.NotTold(next.Text.Split('\n')[0], Errno.Name(error));
            _ = _pending.Dequeue();
        }
    }

    private void Send(string text, SafeDescriptor? descriptor = null)
    {
        if (_notify is null) return;
        _pending.Enqueue((text, descriptor));
        Flush();
    }

    private int TrySend(string text, SafeDescriptor? descriptor)
    {
        if (descriptor is null) return UnixSocket.TrySendTo(_notify!, Encoding.UTF8.GetBytes(text), []);
        // A VM that has ended meanwhile needs no keeping.
        if (descriptor.IsClosed) return 0;
        using var lease = new DescriptorLease(descriptor);
        return UnixSocket.TrySendTo(_notify!, Encoding.UTF8.GetBytes(text), [lease.Number]);
    }

    private static List<(string Name, SafeDescriptor Descriptor)> Inherit()
    {
        var found = new List<(string Name, SafeDescriptor Descriptor)>();
        foreach (var name in NamesOf(Take("LISTEN_PID"), Take("LISTEN_FDS"), Take("LISTEN_FDNAMES"), Environment.ProcessId))
            found.Add((name, OwnSession.Inherit(FirstDescriptor + found.Count)));
        return found;
    }

    /// <summary>How often a process is to say that it runs, which is twice in the time after which it is ended; null where it is not to.</summary>
    internal static TimeSpan? WatchdogOf(string? microseconds, string? process, int processId) =>
        long.TryParse(microseconds, NumberStyles.None, CultureInfo.InvariantCulture, out var limit) && limit > 0
        && (process is null || process == processId.ToString(CultureInfo.InvariantCulture)) ? TimeSpan.FromMicroseconds(limit / 2) : null;

    /// <summary>The names of the descriptors that came with a process, "" for one without; none where they are another process's.</summary>
    internal static IReadOnlyList<string> NamesOf(string? listenPid, string? listenFds, string? listenFdNames, int processId)
    {
        if (!int.TryParse(listenFds, NumberStyles.None, CultureInfo.InvariantCulture, out var count) || count > MaxDescriptors
            || listenPid != processId.ToString(CultureInfo.InvariantCulture)) return [];
        var names = (listenFdNames ?? "").Split(':');
        return [.. Enumerable.Range(0, count).Select(i => i < names.Length ? names[i] : "")];
    }

    /// <summary>What is meant for this process is not meant for its worker.</summary>
    private static string? Take(string variable)
    {
        var value = Environment.GetEnvironmentVariable(variable);
        Environment.SetEnvironmentVariable(variable, null);
        return string.IsNullOrEmpty(value) ? null : value;
    }
}
