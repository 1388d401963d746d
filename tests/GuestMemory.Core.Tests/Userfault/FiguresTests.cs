using System.Diagnostics.Metrics;
using System.Net;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;

namespace GuestMemory.Core.Tests;

/// <summary>What handlers count, and how it is told.</summary>
public sealed partial class FiguresTests : IDisposable
{
    private const int Pages = 64;
    private readonly TestFolder _folder = new();

    public FiguresTests() => _folder.WriteImage("image", Pages);

    public void Dispose() => _folder.Dispose();

    [UffdFact]
    public void EveryFaultIsCountedOnceByWhatItGot()
    {
        using var handler = Start();
        using (var region = Region())
        {
            var memory = Connect(handler, region);
            Read(memory, 0, Pages);
            region.GetMmapRegion().Discard(0, 4096 * 8);
            Read(memory, 0, 8);
            Host.Until(() => handler.FaultCount == Pages + 8);
            var figures = handler.GetFigures();
            Assert.Equal((Pages + 8L, (long)Pages, 8L, 0L, 0L), (figures.FaultCount, figures.CopiedCount, figures.ZeroCount, figures.PoisonedCount, figures.FailedCount));
            Assert.Equal((1L, Pages * 4096L, 0L, 0L, 0L), (figures.RemoveCount, figures.FaultByteCount, figures.WindowByteCount, figures.FillByteCount, figures.QueueDepth));
            Assert.Equal(((long)Pages, (long)Pages, 8L, 100.0), (figures.PageCount, figures.PresentPageCount, figures.RemovedPageCount, figures.PercentPresent));
            Assert.True(figures.LatencyP50 > TimeSpan.Zero);
            Assert.True(figures.LatencyP50 <= figures.LatencyP90 && figures.LatencyP90 <= figures.LatencyP99 && figures.LatencyP99 <= figures.LatencyP999 && figures.LatencyP999 <= figures.LatencyMax);
            var vm = Assert.Single(figures.Vms);
            Assert.Equal((Environment.ProcessId, Pages + 8L), (vm.ProcessId, vm.FaultCount));
            Assert.True(vm.TimeToFirstPage > TimeSpan.Zero);
        }

        // What has ended still counts.
        Host.Until(() => handler.ConnectionCount == 0);
        var after = handler.GetFigures();
        Assert.Equal((Pages + 8L, 0, 0L), (after.FaultCount, after.Vms.Count, after.PageCount));
        Assert.True(after.LatencyMax > TimeSpan.Zero);
    }

    [UffdFact]
    public void WhatIsMissingIsCountedForAllVms()
    {
        using var handler = Start();
        using var region = Region();
        Read(Connect(handler, region), 0, 5);
        Host.Until(() => handler.FaultCount == 5);
        var figures = handler.GetFigures();
        Assert.Equal((Pages - 5L, Pages - 5L), (figures.MissingPageCount, Assert.Single(figures.Vms).MissingPageCount));
    }

    [UffdFact]
    public void AHandlerThatHasEndedKnowsOfNoWrites()
    {
        using var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], TrackDirty = true });
        Assert.Empty(handler.GetDirtyBitmaps());
        handler.Stop();
        Assert.Equal(GuestMemoryError.HandlerGone, Assert.Throws<GuestMemoryException>(() => handler.GetDirtyBitmaps()).Error);
    }

    [UffdFact]
    public void TheBackgroundCountsApart()
    {
        using var handler = Start(UffdStrategy.Background);
        using var region = Region();
        Connect(handler, region);
        Host.Until(() => handler.GetFigures().PercentPresent >= 100);
        var figures = handler.GetFigures();
        Assert.Equal((0L, 0L, Pages * 4096L), (figures.FaultCount, figures.FaultByteCount, figures.FillByteCount));
        Assert.Null(figures.Vms[0].TimeToFirstPage);
    }

    [UffdFact]
    public void AsJson()
    {
        using var handler = Start();
        using var region = Region();
        Read(Connect(handler, region), 3, 2);
        Host.Until(() => handler.FaultCount == 2);
        var line = UffdFiguresText.ToJson(handler.GetFigures());
        Assert.DoesNotContain('\n', line);
        using var json = JsonDocument.Parse(line);
        Assert.Equal(2, json.RootElement.GetProperty("faults").GetProperty("copied").GetInt64());
        Assert.Equal(8192, json.RootElement.GetProperty("bytes").GetProperty("fault").GetInt64());
        Assert.True(json.RootElement.GetProperty("latency_us").GetProperty("0.99").GetDouble() > 0);
        Assert.Equal(handler.SocketPath, json.RootElement.GetProperty("socket_path").GetString());
        Assert.False(json.RootElement.GetProperty("vms")[0].TryGetProperty("socket_path", out _));
        Assert.Contains("a + 'b'", UffdFiguresText.ToJson(handler.GetFigures() with { Error = "a + 'b'" }), StringComparison.Ordinal);
        Assert.Equal(Environment.ProcessId, json.RootElement.GetProperty("vms")[0].GetProperty("process_id").GetInt32());
    }

    [UffdFact]
    public async Task MetricsAtAPort()
    {
        using var handler = Start(port: 0);
        using var region = Region();
        Read(Connect(handler, region), 0, 5);
        // A fault's time is noted after the fault was counted.
        Host.Until(() => handler.GetFigures().LatencyCounts.Sum() == 5);
        using var client = new HttpClient { BaseAddress = new Uri($"http://127.0.0.1:{handler.MetricsPort}") };
        using var answer = await client.GetAsync("/metrics");
        Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
        Assert.Equal("application/openmetrics-text", answer.Content.Headers.ContentType!.MediaType);
        AssertOpenMetrics(await answer.Content.ReadAsStringAsync());
        using var other = await client.GetAsync("/");
        Assert.Equal(HttpStatusCode.NotFound, other.StatusCode);
        using var posted = await client.PostAsync("/metrics", new StringContent("x"));
        Assert.Equal(HttpStatusCode.MethodNotAllowed, posted.StatusCode);
        Assert.Equal(GuestMemoryError.PortInUse, Assert.Throws<GuestMemoryException>(() => Start(port: handler.MetricsPort, name: "other.sock")).Error);
        Assert.False(File.Exists(_folder["other.sock"]));
    }

    [UffdFact]
    public void MetricsAtASocket()
    {
        var before = Host.Resources();
        using (var handler = Start(path: _folder["m.sock"]))
        {
            Assert.Equal(0, FileStatus.TryGet(_folder["m.sock"], out var status));
            Assert.Equal(FileStatus.S_IFSOCK | 0b110_000_000, status.stx_mode);
            // Who says nothing, too much, or goes half way only loses its own connection.
            using (Dial())
            using (var chatty = Dial())
            using (var brief = Dial())
            {
                try
                {
                    chatty.Send(new byte[100_000]);
                }
                catch (SocketException)
                {
                    // It was cut off while it talked.
                }

                brief.Send("GET /me"u8);
            }

            using var client = Dial();
            client.Send("GET /metrics HTTP/1.0\r\n\r\n"u8);
            using var reader = new StreamReader(new NetworkStream(client));
            var answer = reader.ReadToEnd();
            Assert.StartsWith("HTTP/1.1 200 OK\r\n", answer, StringComparison.Ordinal);
            Assert.EndsWith("# EOF\n", answer, StringComparison.Ordinal);
        }

        Assert.False(File.Exists(_folder["m.sock"]));
        Host.AssertNoneLeft(before);
    }

    /// <summary>What Prometheus reads is what it always was, to the byte: dashboards and alerts use it.</summary>
    [Fact]
    public void TheTextOfMetricsStays()
    {
        var all = Figures(300, 0, null) with { Vms = [Figures(100, 4711, "web\"1\\"), Figures(200, 12, null)] };
        Assert.Equal(File.ReadAllText(Path.Combine(AppContext.BaseDirectory, "Userfault", "openmetrics.txt")), UffdFiguresText.ToOpenMetrics([all with { SocketPath = "/run/h\n.sock", Image = "web" }]));

        static UffdFigures Figures(int first, int process, string? name) => new()
        {
            ProcessId = process,
            VmName = name,
            FaultCount = first + 1,
            CopiedCount = first + 2,
            ZeroCount = first + 3,
            PresentCount = first + 4,
            ContinuedCount = first + 5,
            WriteProtectedCount = first + 6,
            DeferredCount = first + 7,
            PoisonedCount = first + 8,
            FailedCount = first + 9,
            RemoveCount = first + 10,
            SourceErrorCount = first + 11,
            QueueDepth = first + 12,
            FaultByteCount = first + 13,
            WindowByteCount = first + 14,
            FillByteCount = first + 15,
            FillZeroByteCount = first + 16,
            PageCount = 64,
            PresentPageCount = first / 100 * 3,
            RemovedPageCount = 0,
            LatencyP50 = default,
            LatencyP90 = default,
            LatencyP99 = default,
            LatencyP999 = default,
            LatencyMax = TimeSpan.FromMilliseconds(17.25),
            LatencyCounts = [.. Enumerable.Range(1, 17).Select(static count => (long)count)],
            LatencySum = TimeSpan.FromMilliseconds(81.5),
            TimeToFirstPage = null,
            Error = null,
        };
    }

    /// <summary>As dotnet-counters and OpenTelemetry read them, in the process of the handler.</summary>
    [UffdFact]
    public void TheFiguresAreInstrumentsOfAMeter()
    {
        var measured = new List<(string Name, double Value, string Tags)>();
        var instruments = new Dictionary<string, (string? Unit, string Kind)>(StringComparer.Ordinal);
        using var listener = new MeterListener();
        listener.InstrumentPublished = (instrument, self) =>
        {
            if (instrument.Meter.Name == UffdHandler.MeterName) self.EnableMeasurementEvents(instrument);
        };
        listener.SetMeasurementEventCallback<long>((instrument, value, tags, _) => Note(instrument, value, tags));
        listener.SetMeasurementEventCallback<double>((instrument, value, tags, _) => Note(instrument, value, tags));
        listener.Start();
        using (var handler = Start())
        {
            using var region = Region();
            Read(Connect(handler, region), 0, 5);
            Host.Until(() => handler.FaultCount == 5);
            var vm = Assert.Single(handler.GetVms());
            Host.Until(() => Measure("guestmemory.uffd.faults", "outcome=copied") == 5);
            Assert.Equal(("{fault}", "ObservableCounter`1"), instruments["guestmemory.uffd.faults"]);
            Assert.Equal(("By", "ObservableCounter`1"), instruments["guestmemory.uffd.bytes"]);
            Assert.Equal(("{vm}", "ObservableUpDownCounter`1"), instruments["guestmemory.uffd.vms"]);
            Assert.Equal(("s", "ObservableGauge`1"), instruments["guestmemory.uffd.latency.max"]);
            Assert.Equal(5 * 4096, Measure("guestmemory.uffd.bytes", "path=fault"));
            Assert.Equal(1, Measure("guestmemory.uffd.vms", $"socket={handler.SocketPath},image={handler.Images[0].Name},strategy=OnDemand"));
            Assert.Equal(5, Measure("guestmemory.uffd.vm.faults", $"vm={vm.Name},pid={Environment.ProcessId}"));
            // Noted after the fault is counted.
            Host.Until(() => Measure("guestmemory.uffd.latency.bucket", "le=+Inf") == 5);
            Host.Until(() => Measure("guestmemory.uffd.present", $"vm={vm.Name}") == 5.0 / Pages);
        }

        // With the handler its instruments go.
        Assert.Null(Measure("guestmemory.uffd.vms", _folder["h.sock"]));

        void Note(Instrument instrument, double value, ReadOnlySpan<KeyValuePair<string, object?>> tags)
        {
            instruments[instrument.Name] = (instrument.Unit, instrument.GetType().Name);
            measured.Add((instrument.Name, value, string.Join(',', tags.ToArray().Select(static tag => $"{tag.Key}={(tag.Value is double.PositiveInfinity ? "+Inf" : tag.Value)}"))));
        }

        double? Measure(string name, string tags)
        {
            measured.Clear();
            listener.RecordObservableInstruments();
            var found = measured.FindAll(entry => entry.Name == name && entry.Tags.Contains(tags, StringComparison.Ordinal) && entry.Tags.Contains(_folder["h.sock"], StringComparison.Ordinal));
            return found.Count == 0 ? null : Assert.Single(found).Value;
        }
    }

    [Fact]
    public void LatenciesAreCountedBetweenBounds()
    {
        var histogram = new LatencyHistogram();
        foreach (var microseconds in new[] { 1, 3, 7, 60, 2_000_000, 60_000_000 }) histogram.Record(microseconds * 1000L);
        var bounds = UffdFigures.LatencyBounds;
        var counts = histogram.CountBetween(bounds);
        Assert.Equal(bounds.Count + 1, counts.Length);
        Assert.Equal(bounds.Order(), bounds);
        var found = counts.Select((count, i) => (count, At: i == bounds.Count ? "longer" : $"{bounds[i].TotalMicroseconds}")).Where(static entry => entry.count > 0);
        Assert.Equal([(2L, "5"), (1L, "10"), (1L, "100"), (1L, "10000000"), (1L, "longer")], found);
        Assert.InRange(histogram.Sum.TotalSeconds, 62 * 0.97, 62 * 1.03);
    }

    private static void AssertOpenMetrics(string text)
    {
        Assert.EndsWith("# EOF\n", text, StringComparison.Ordinal);
        Assert.Contains(",outcome=\"copied\"} 5\n", text, StringComparison.Ordinal);
        Assert.Contains(",path=\"fault\"} 20480\n", text, StringComparison.Ordinal);
        Assert.Contains(",le=\"+Inf\"} 5\n", text, StringComparison.Ordinal);
        Assert.Contains("# TYPE guestmemory_uffd_latency_seconds histogram\n# UNIT guestmemory_uffd_latency_seconds seconds\n", text, StringComparison.Ordinal);
        var families = new HashSet<string>(StringComparer.Ordinal);
        foreach (var line in text.TrimEnd('\n').Split('\n'))
        {
            if (line.StartsWith("# TYPE ", StringComparison.Ordinal)) Assert.True(families.Add(line.Split(' ')[2]), line);
            else if (!line.StartsWith('#'))
            {
                var match = SampleLine().Match(line);
                Assert.True(match.Success, line);
                Assert.Contains(families, family => match.Groups["name"].Value.StartsWith(family, StringComparison.Ordinal));
            }
        }
    }

    private static GuestRegionMmap Region() => new(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));

    private static GuestMemoryMmap Connect(UffdHandler handler, GuestRegionMmap region)
    {
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        return memory;
    }

    private static void Read(GuestMemoryMmap memory, int first, int count)
    {
        for (var page = first; page < first + count; page++) memory.ReadExact(new GuestAddress((ulong)page * 4096), new byte[8]);
    }

    private Socket Dial()
    {
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        socket.Connect(new UnixDomainSocketEndPoint(_folder["m.sock"]));
        return socket;
    }

    private UffdHandler Start(UffdStrategy strategy = UffdStrategy.OnDemand, int? port = null, string? path = null, string name = "h.sock") => UffdHandler.Start(new UffdHandlerOptions
    {
        SocketPath = _folder[name], MemoryPath = _folder["image"], Strategy = strategy, MetricsPort = port, MetricsPath = path,
    });

    [GeneratedRegex("""^(?<name>guestmemory_uffd_[a-z_]+)\{socket="[^"]+"(,[a-z]+="[^"]*")*\} [0-9.eE+-]+$""", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex SampleLine();
}
