using System.Globalization;
using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>
/// What a real Firecracker (1.17-dev, main of August 2026) did when its VM was restored: its hand-over messages, and the events that its
/// userfaultfd gave, in their order, while the guest checked its memory and the balloon took 4 MiB and gave them back. Here this process is the VMM.
/// tests/Integration/Firecracker.Tests.ps1 has the real one, where there is one.
/// </summary>
[Collection(RuntimeFolder.Name)]
public sealed class FirecrackerTests(RuntimeFolder runtime) : VmFixture(runtime)
{
    private const int PageSize = 4096;

    private static readonly string s_data = Path.Combine(AppContext.BaseDirectory, "Userfault", "Firecracker");

    public static MatrixTheoryData<bool, UffdStrategy> Cases => new([false, true], Enum.GetValues<UffdStrategy>());

    /// <summary>A guest of 3500 MiB has a hole below 4 GiB, and so two regions.</summary>
    [Theory]
    [InlineData("handover.json", 16, 1)]
    [InlineData("handover-two-regions.json", 3500, 2)]
    public void ItsMessageIsUnderstoodAndTheOneThatIsSent(string name, int mebibytes, int regions)
    {
        var message = File.ReadAllBytes(Path.Combine(s_data, name));
        var list = UffdMappingList.FromJson(message);
        var size = (ulong)mebibytes << 20;
        UffdMappingList.Validate(list, size);
        Assert.Equal(regions, list.Count);
        Assert.Equal(size, list.Aggregate(0UL, static (sum, mapping) => sum + mapping.Size));
        Assert.All(list, static mapping => Assert.Equal((PageSize, PageSize), ((int)mapping.PageSize, (int)mapping.PageSizeKib)));
        Assert.Equal(message, UffdMappingList.ToJson(list));
    }

    /// <summary>Half way through, the worker of a handler in a process of its own dies.</summary>
    [UffdTheory]
    [MemberData(nameof(Cases))]
    public async Task EveryPageIsRightInTheOrderOfItsEvents(bool process, UffdStrategy strategy)
    {
        var message = await File.ReadAllTextAsync(Path.Combine(s_data, "handover.json"), TestContext.Current.CancellationToken);
        var mapping = Assert.Single(UffdMappingList.FromJson(Encoding.UTF8.GetBytes(message)));
        var events = ReadEvents();
        var handler = Start(process, Options(strategy, (int)mapping.Size / PageSize, events));
        var region = Region(new MmapRegionBuilder(mapping.Size));
        using var peer = new RawPeer(handler.SocketPath, region);
        // Firecracker's memory lay elsewhere; the rest is as it was sent.
        peer.Send(message.Replace(mapping.BaseHostVirtAddr.ToString(CultureInfo.InvariantCulture), region.HostAddress.ToString(CultureInfo.InvariantCulture), StringComparison.Ordinal), 1);
        // A page that does not come stops the thread that waits for it.
        await Task.Run(() => Replay(events, region, process ? () => KillWorker(handler) : null), TestContext.Current.CancellationToken).WaitAsync(Host.Patience, TestContext.Current.CancellationToken);
        // Figures follow what they count.
        Host.Until(() => (handler.State, handler.ConnectionCount, handler.GetFigures().MissingPageCount) == (UffdHandlerState.Serving, 1, 0));
        if (process)
        {
            Host.Until(() => handler.WorkerCount > 1);
            return;
        }

        Assert.Null(handler.Error);
        Assert.Equal(events.Count(static item => item.What == "remove"), handler.GetFigures().RemoveCount);
    }

    /// <summary>Does what the events say, and compares every page that is touched, and in the end each.</summary>
    private static void Replay(List<(string What, int First, int Last)> events, GuestRegionMmap region, Action? interrupt)
    {
        var guest = GuestMemoryMmap.FromRegions([region]);
        var pages = (int)region.Size / PageSize;
        // What a page has: the number that it was filled with; null for zeros.
        var numbers = Enumerable.Range(0, pages).Select(static page => (int?)page).ToArray();
        for (var i = 0; i < events.Count; i++)
        {
            if (i == events.Count / 2) interrupt?.Invoke();
            var (what, first, last) = events[i];
            if (what == "remove")
            {
                region.GetMmapRegion().Discard((ulong)first * PageSize, (ulong)(last - first + 1) * PageSize);
                Array.Fill(numbers, null, first, last - first + 1);
                continue;
            }

            for (var page = first; page <= last; page++)
            {
                if (what == "write") guest.Write(new GuestAddress((ulong)page * PageSize), Content(numbers[page] = pages + page));
                else AssertPage(guest, page, numbers[page]);
            }
        }

        for (var page = 0; page < pages; page++) AssertPage(guest, page, numbers[page]);
    }

    private static List<(string What, int First, int Last)> ReadEvents()
    {
        var events = new List<(string, int, int)>();
        foreach (var line in File.ReadLines(Path.Combine(s_data, "events.txt")).Where(static line => line is not ['#', ..]))
        {
            var (at, dash) = (line.IndexOf(' ', StringComparison.Ordinal), line.IndexOf('-', StringComparison.Ordinal));
            events.Add((line[..at], Number(line[(at + 1)..(dash < 0 ? line.Length : dash)]), Number(line[((dash < 0 ? at : dash) + 1)..])));
        }

        return events;

        static int Number(string text) => int.Parse(text, CultureInfo.InvariantCulture);
    }

    private static byte[] Content(int? number)
    {
        var page = new byte[PageSize];
        if (number is { } value) TestFolder.Fill(page, value);
        return page;
    }

    private static void AssertPage(GuestMemoryMmap guest, int number, int? expected)
    {
        var page = new byte[PageSize];
        guest.ReadExact(new GuestAddress((ulong)number * PageSize), page);
        Assert.True(page.AsSpan().SequenceEqual(Content(expected)), $"page {number} is not {(expected is { } value ? $"that of {value}" : "zero")}");
    }

    private static void KillWorker(UffdHandler handler)
    {
        using var worker = Pidfd.TryOpen(handler.WorkerProcessId, out _)!;
        Assert.Equal(0, Pidfd.TryKill(worker));
        Host.Until(() => Pidfd.HasEnded(worker));
    }

    private UffdHandlerOptions Options(UffdStrategy strategy, int pages, List<(string What, int First, int Last)> events)
    {
        var record = strategy == UffdStrategy.Replay ? Folder["record"] : null;
        if (record is not null)
        {
            var touched = events.Where(static item => item.What != "remove").SelectMany(static item => Enumerable.Range(item.First, item.Last - item.First + 1));
            TouchRecord.Save(record, (ulong)pages * PageSize, [.. touched.Distinct().Select(static page => (uint)page)]);
        }

        return new() { SocketPath = Folder["h.sock"], MemoryPath = Folder.WriteImage("image", pages), Strategy = strategy, ReplayPath = record };
    }
}
