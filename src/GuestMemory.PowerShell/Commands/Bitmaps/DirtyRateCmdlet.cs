using System.Diagnostics;
using System.Management.Automation;
using GuestMemory.Core;

namespace GuestMemory.PowerShell.Commands;

/// <summary>A cmdlet that takes the marks of memory at intervals.</summary>
public abstract class DirtyRateCmdlet : DirtyBitmapCmdlet
{
    private readonly List<Source> _sources = [];

    /// <inheritdoc/>
    protected override void EndProcessing()
    {
        base.EndProcessing();
        // What was written before does not count.
        Take(static _ => { });
        Sample();
    }

    /// <summary>Does all the sampling.</summary>
    protected abstract void Sample();

    /// <inheritdoc/>
    private protected override void ReadFrom(IReadOnlyList<DirtyPart> parts)
    {
        // A source that is named twice is sampled once: each sampling would take the marks of the other.
        if (!_sources.Exists(source => source.Parts[0].Target == parts[0].Target)) _sources.Add(new Source(parts, NewMeter()));
    }

    /// <summary>What measures one address space, VM or handler.</summary>
    private protected abstract DirtyRateMeter NewMeter();

    /// <summary>Waits for the end of each interval and takes the marks, until the action is done, Ctrl+C, or nothing is left to be read.</summary>
    /// <param name="interval">The seconds from one sample to the next.</param>
    /// <param name="sampled">Called after each sample of all sources; false ends the sampling.</param>
    /// <param name="emit">Called with each sample.</param>
    private protected void SampleEvery(double interval, Func<bool> sampled, Action<DirtySample> emit)
    {
        var clock = Stopwatch.StartNew();
        for (var next = interval; _sources.Count > 0; next = Math.Max(next + interval, clock.Elapsed.TotalSeconds))
        {
            var left = TimeSpan.FromSeconds(next) - clock.Elapsed;
            if (left > TimeSpan.Zero && StopToken.WaitHandle.WaitOne(left)) throw new PipelineStoppedException();
            Take(emit);
            if (!sampled()) return;
        }
    }

    /// <summary>The meters of the sources that can still be read.</summary>
    private protected IEnumerable<DirtyRateMeter> Meters => _sources.Select(static source => source.Meter);

    private void Take(Action<DirtySample> emit)
    {
        foreach (var source in _sources.ToArray())
        {
            // Nothing takes its place: without a part the figures would be those of another memory.
            if (!source.Parts.All(part => Attempt(() => source.Bitmaps.AddRange(part.Read(true)), part.Target)))
            {
                _sources.Remove(source);
                continue;
            }

            var elapsed = source.Clock.Elapsed;
            source.Clock.Restart();
            if (source.IsStarted) emit(source.Meter.Add(source.Bitmaps, elapsed));
            source.IsStarted = true;
            source.Bitmaps.Clear();
        }
    }

    private sealed class Source(IReadOnlyList<DirtyPart> parts, DirtyRateMeter meter)
    {
        public IReadOnlyList<DirtyPart> Parts => parts;

        public DirtyRateMeter Meter => meter;

        public List<DirtyBitmap> Bitmaps { get; } = [];

        public Stopwatch Clock { get; } = Stopwatch.StartNew();

        public bool IsStarted { get; set; }
    }
}
