using GuestMemory.UffdHost;

namespace GuestMemory.Core.Tests;

/// <summary>The log of a handler's processes: what a line is, and how many one VM may have.</summary>
public sealed class LineLoggerTests : IDisposable
{
    private readonly TestFolder _folder = new();
    private readonly Clock _clock = new();
    private readonly List<string> _lines = [];
    private readonly LineLogger _logger;

    public LineLoggerTests() => _logger = new LineLogger(_lines.Add, hasPriorities: false, _clock);

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void AVmThatFloodsHidesNoOther()
    {
        for (var i = 0; i < 10_000; i++) _logger.VmFailed(1, "bad", 17, $"error {i}");
        _logger.VmFailed(2, "good", 18, "its own");
        _logger.PeerRefused(1000, "a process");
        _logger.WentWrong("the handler");
        Assert.Equal(LineLimit.Burst + 3, _lines.Count);
        Assert.EndsWith("VM 1, bad, process 17: error 19\n", _lines[LineLimit.Burst - 1], StringComparison.Ordinal);
        Assert.EndsWith("VM 2, good, process 18: its own\n", _lines[^3], StringComparison.Ordinal);
        Assert.EndsWith(" a process\n", _lines[^2], StringComparison.Ordinal);
        Assert.EndsWith(" the handler\n", _lines[^1], StringComparison.Ordinal);
        // An order of the operator is no line of the VM's.
        _logger.VmStopped(1, "bad", 17, UffdOnError.Kill);
        Assert.EndsWith("VM 1, bad, process 17, is stopped as ordered (Kill)\n", _lines[^1], StringComparison.Ordinal);
    }

    [Fact]
    public void WhatWasLeftOutIsCountedAndToldOnce()
    {
        Assert.Equal(-1, _logger.Timeout);
        for (var i = 0; i < LineLimit.Burst + 5; i++) _logger.VmFailed(1, "bad", 17, $"error {i}");
        Assert.Equal(1000, _logger.Timeout);
        _logger.TellLeftOut();
        Assert.Equal(LineLimit.Burst, _lines.Count);
        _clock.Advance(TimeSpan.FromSeconds(1));
        Assert.Equal(0, _logger.Timeout);
        _logger.TellLeftOut();
        Assert.EndsWith("5 more lines of VM 1 were left out: it may have 20 at once, and one a second\n", _lines[^1], StringComparison.Ordinal);
        Assert.Equal(-1, _logger.Timeout);
        _logger.TellLeftOut();
        Assert.Equal(LineLimit.Burst + 1, _lines.Count);
        // One a second, however many come; how many did not stands before the next.
        for (var i = 100; i < 110; i++) _logger.VmFailed(1, "bad", 17, $"error {i}");
        Assert.EndsWith("error 100\n", _lines[^1], StringComparison.Ordinal);
        _clock.Advance(TimeSpan.FromSeconds(1));
        _logger.VmFailed(1, "bad", 17, "error 200");
        Assert.EndsWith(" 9 more lines of VM 1 were left out: it may have 20 at once, and one a second\n", _lines[^2], StringComparison.Ordinal);
        Assert.EndsWith(" VM 1, bad, process 17: error 200\n", _lines[^1], StringComparison.Ordinal);
        // After a pause all of them may come at once again; at the end everything is told.
        _clock.Advance(TimeSpan.FromSeconds(LineLimit.Burst));
        var before = _lines.Count;
        for (var i = 0; i < LineLimit.Burst + 2; i++) _logger.VmFailed(1, "bad", 17, $"error {i}");
        Assert.Equal(before + LineLimit.Burst, _lines.Count);
        _logger.TellLeftOut(all: true);
        Assert.Contains(" 2 more lines of VM 1 ", _lines[^1], StringComparison.Ordinal);
    }

    [Fact]
    public void ManySourcesAreForgottenAndNoneIsMixedUp()
    {
        for (var i = 1; i <= 5000; i++)
        {
            _logger.VmFailed(i, "a", 1, "first");
            _logger.VmFailed(i, "a", 1, "second");
            _logger.VmFailed(i, "a", 1, "second");
            _clock.Advance(TimeSpan.FromSeconds(1));
        }

        Assert.Equal(10_000, _lines.Count);
    }

    [Fact]
    public void ALineIsAsBeforeAndHasAPriorityWhereTheJournalReadsIt()
    {
        var journal = new LineLogger(_lines.Add, hasPriorities: true, _clock);
        _logger.WorkerStarted(12);
        _logger.WentWrong("the same");
        _logger.WentWrong("the same");
        journal.WorkerStarted(12);
        journal.VmFailed(1, "bad", 17, "one\ntwo\r\n<0>three");
        journal.Failed("why");
        journal.WorkerBroke(12, new InvalidOperationException("broken"));
        var head = $"2026-01-02T03:04:05.006Z {Environment.ProcessId}";
        Assert.Equal(
            [
                $"{head} worker 12 started\n", $"{head} the same\n", $"<6>{head} worker 12 started\n", $"<4>{head} VM 1, bad, process 17: one\n<4>  two\n<4>  <0>three\n",
                $"<3>{head} failed: why\n", $"<3>{head} worker 12: System.InvalidOperationException: broken\n",
            ],
            _lines);
    }

    [Fact]
    public void OfItsOwnFileTheNewestHalfIsKept()
    {
        var path = _folder["log"];
        var lines = Enumerable.Range(0, 30_000).Select(static i => $"line {i} {new string('x', 30)}\n").ToArray();
        File.WriteAllText(path, string.Concat(lines));
        Assert.True(new FileInfo(path).Length > 1 << 20);
        using (var file = File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite)) Log.Trim(file);
        var kept = File.ReadAllText(path);
        Assert.InRange(kept.Length, (1 << 19) - 100, 1 << 19);
        Assert.Equal(string.Concat(lines[^kept.Count(static letter => letter == '\n')..]), kept);
        using (var file = File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite)) Log.Trim(file);
        Assert.Equal(kept, File.ReadAllText(path));
    }

    private sealed class Clock : TimeProvider
    {
        private TimeSpan _since = TimeSpan.FromHours(1);

        public override long TimestampFrequency => TimeSpan.TicksPerSecond;

        public void Advance(TimeSpan time) => _since += time;

        public override long GetTimestamp() => _since.Ticks;

        public override DateTimeOffset GetUtcNow() => new(2026, 1, 2, 3, 4, 5, 6, TimeSpan.Zero);
    }
}
