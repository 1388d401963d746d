namespace GuestMemory.UffdHost;

/// <summary>
/// How many lines of the log one source, a VM or a user whose processes connect, may cause: <see cref="Burst"/> at once, and one a second. No source is
/// measured by what another one causes. For one thread at a time.
/// </summary>
internal sealed class LineLimit(TimeProvider time)
{
    public const int Burst = 20;

    // Sources that caused nothing of late are forgotten when there are more.
    private const int ManySources = 256;

    private readonly long _second = time.TimestampFrequency;
    private readonly Dictionary<string, Source> _sources = new(StringComparer.Ordinal);

    /// <summary>Milliseconds until it is to be told of lines that were left out; -1 where none were.</summary>
    public int Timeout
    {
        get
        {
            var now = time.GetTimestamp();
            var timeout = -1;
            foreach (var source in _sources.Values)
            {
                if (source.LeftOut == 0) continue;
                var left = (int)Math.Clamp(Math.Ceiling(1000.0 * (OpensAt(source) - now) / _second), 0, int.MaxValue);
                timeout = timeout < 0 ? left : Math.Min(timeout, left);
            }

            return timeout;
        }
    }

    /// <summary>Whether a source may have a line now. One that it may not have is counted; but for the one that it had last, which is no news.</summary>
    public bool Allows(string name, string text)
    {
        var now = time.GetTimestamp();
        if (!_sources.TryGetValue(name, out var source))
        {
            if (_sources.Count >= ManySources) Forget(now);
            _sources[name] = source = new Source();
        }

        if (text == source.Last) return false;
        if (OpensAt(source) > now)
        {
            source.LeftOut++;
            return false;
        }

        source.Last = text;
        source.FullAt = Math.Max(source.FullAt, now) + _second;
        return true;
    }

    /// <summary>The sources that may have lines again, with how many were left out of each; they are told once.</summary>
    /// <param name="all">Also those that may have none yet.</param>
    public IEnumerable<(string Name, long Count)> TakeLeftOut(bool all = false)
    {
        var now = time.GetTimestamp();
        foreach (var (name, source) in _sources)
        {
            if (source.LeftOut == 0 || (!all && OpensAt(source) > now)) continue;
            yield return (name, source.LeftOut);
            source.LeftOut = 0;
        }
    }

    /// <summary>When a source may have its next line.</summary>
    private long OpensAt(Source source) => source.FullAt - (_second * (Burst - 1));

    private void Forget(long now)
    {
        foreach (var (name, source) in _sources.ToArray())
        {
            if (source.LeftOut == 0 && source.FullAt <= now) _ = _sources.Remove(name);
        }
    }

    private sealed class Source
    {
        /// <summary>When it may have as many lines at once as any; each line puts that off by a second.</summary>
        public long FullAt { get; set; }

        public long LeftOut { get; set; }

        public string? Last { get; set; }
    }
}
