using System.Globalization;
using System.Text;
using Microsoft.Extensions.Logging;

namespace GuestMemory.UffdHost;

/// <summary>
/// Writes what an operator wants to read afterwards, a line each: time, process and text; before them the priority where the journal reads it
/// (<c>sd-daemon(3)</c>). Lines that VMs cause are limited (<see cref="LineLimit"/>), by VM, or by the user whose process has not handed over a VM; those
/// of the handler are all written.
/// </summary>
/// <param name="write">Writes a line, with its end.</param>
/// <param name="hasPriorities">Whether the journal reads the lines.</param>
/// <param name="time">The clock.</param>
internal sealed class LineLogger(Action<string> write, bool hasPriorities, TimeProvider time) : ILogger
{
    private readonly Lock _lock = new();
    private readonly LineLimit _limit = new(time);
    private string? _last;

    /// <summary>Milliseconds until <see cref="TellLeftOut"/> is due; -1 where nothing is to be told.</summary>
    public int Timeout
    {
        get
        {
            lock (_lock) return _limit.Timeout;
        }
    }

    /// <summary>Says how many lines were left out of the VMs and users that may have lines again.</summary>
    /// <param name="all">Also of those that may have none yet: this process writes no more.</param>
    public void TellLeftOut(bool all = false)
    {
        lock (_lock)
        {
            foreach (var (source, count) in _limit.TakeLeftOut(all))
                Write(LogLevel.Warning, string.Create(CultureInfo.InvariantCulture, $"{count} more lines of {source} were left out: it may have {LineLimit.Burst} at once, and one a second"));
        }
    }

    public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter)
    {
        var text = formatter(state, exception);
        if (exception is not null) text = $"{text}: {exception}";
        lock (_lock)
        {
            TellLeftOut();
            if (SourceOf(eventId, state) is { } source)
            {
                if (!_limit.Allows(source, text)) return;
            }
            else
            {
                // The same again and again is no news.
                if (text == _last) return;
                _last = text;
            }

            Write(logLevel, text);
        }
    }

    public bool IsEnabled(LogLevel logLevel) => logLevel is >= LogLevel.Information and < LogLevel.None;

    public IDisposable? BeginScope<TState>(TState state)
        where TState : notnull => null;

    /// <summary>What caused an event, by the values that it has; null where it was the handler itself.</summary>
    private static string? SourceOf<TState>(EventId eventId, TState state)
    {
        if (eventId.Id is not (HandlerEvents.VmFailedId or HandlerEvents.PeerRefusedId) || state is not IEnumerable<KeyValuePair<string, object?>> values) return null;
        var (key, name) = eventId.Id == HandlerEvents.VmFailedId ? (HandlerEvents.Vm, "VM") : (HandlerEvents.User, "user");
        return string.Create(CultureInfo.InvariantCulture, $"{name} {values.FirstOrDefault(value => value.Key == key).Value}");
    }

    private void Write(LogLevel level, string text)
    {
        var priority = hasPriorities ? PriorityOf(level) : "";
        var line = new StringBuilder(priority);
        _ = line.Append(CultureInfo.InvariantCulture, $"{time.GetUtcNow():yyyy-MM-dd'T'HH:mm:ss.fff'Z'} {Environment.ProcessId} ")
            // Nothing that a VM sends makes a line that looks like another's.
            .Append(text.ReplaceLineEndings($"\n{priority}  ")).Append('\n');
        write(line.ToString());
    }

    /// <summary>The priority of syslog (<c>sd-daemon(3)</c>).</summary>
    private static string PriorityOf(LogLevel level) => level switch
    {
        LogLevel.Critical => "<2>",
        LogLevel.Error => "<3>",
        LogLevel.Warning => "<4>",
        LogLevel.Information => "<6>",
        _ => "<7>",
    };
}
