using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>
/// Random and mutated hand-overs, and random histories of a VM's memory, for as many seconds as GUESTMEMORY_FUZZ_SECONDS says (20,
/// shared by the tests).
/// </summary>
public sealed class FuzzTests : IDisposable
{
    private const int Pages = 512;
    private static readonly TimeSpan s_time = TimeSpan.FromSeconds(double.Parse(Environment.GetEnvironmentVariable("GUESTMEMORY_FUZZ_SECONDS") ?? "20", CultureInfo.InvariantCulture) / 3);
    private readonly TestFolder _folder = new();

    private readonly ITestOutputHelper _output;
    private bool _hangs;

    public FuzzTests(ITestOutputHelper output)
    {
        _output = output;
        _folder.WriteImage("image", Pages);
    }

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void MappingListsAreReadOrRefused()
    {
        var (read, refused) = (0, 0);
        ForAWhile(FuzzedList.Arbitrary(), list =>
        {
            var json = list.ToBytes();
            try
            {
                var mappings = UffdMappingList.FromJson(json);
                UffdMappingList.Validate(mappings, Pages * 4096);
                read++;
                // What is believed can be served: everything lies inside the image, and inside the address space.
                foreach (var mapping in mappings)
                {
                    Assert.True(mapping.Size > 0 && mapping.Offset <= Pages * 4096 && mapping.Size <= (Pages * 4096) - mapping.Offset);
                    Assert.True(mapping.BaseHostVirtAddr + mapping.Size > mapping.BaseHostVirtAddr || mapping.BaseHostVirtAddr + mapping.Size == 0);
                }
            }
            catch (GuestMemoryException)
            {
                refused++;
            }
        });
        Assert.True(Stress.Replay is not null || (read > 10 && refused > 10), $"{read} read, {refused} refused");
    }

    [UffdFact]
    public void AHandlerOutlivesWhatPeersSend()
    {
        using var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], HandoverTimeout = TimeSpan.FromMilliseconds(100) });
        var before = Host.Resources();
        ForAWhile(FuzzedList.Arbitrary(), list =>
        {
            using var peer = new RawPeer(handler.SocketPath);
            var bytes = list.ToBytes().AsSpan();
            for (var i = 0; !bytes.IsEmpty; i++)
            {
                var (length, descriptors) = list.Packet(i, bytes.Length);
                peer.Send(bytes[..length], descriptors);
                bytes = bytes[length..];
            }
        });
        Host.Until(() => handler.ConnectionCount == 0);
        Host.AssertNoneLeft(before);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        Assert.Equal(Pages, UffdTouch.Run(memory, new UffdTouchOptions { Pattern = UffdTouchPattern.Random }).TouchCount);
    }

    /// <summary>Reads, writes and removals by two threads, on pages of their own, with every strategy: each page is always what it must be.</summary>
    [UffdFact]
    public void MemoryIsWhatItsHistorySays() => ForAWhile(ServedHistory.Arbitrary(Pages), history =>
    {
        // A hang is not made shorter: each try would be another.
        if (_hangs) return;
        TouchRecord.Save(_folder["touches"], Pages * 4096, history.Touches(Pages));
        using var handler = UffdHandler.Start(new UffdHandlerOptions
        {
            SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = history.Strategy, WindowSize = 4096UL << (history.Window % 6), TrackDirty = history.TrackDirty,
            ReplayPath = history.Strategy == UffdStrategy.Replay ? _folder["touches"] : null,
        });
        using var region = new GuestRegionMmap(history.Memfd ? new MmapRegionBuilder(Pages * 4096).WithMemfd().Build() : new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        var failures = new Exception?[2];
        var threads = Enumerable.Range(0, 2).Select(half => new Thread(() => failures[half] = Record.Exception(() => Live(memory, region, history.Steps[half], half)))).ToArray();
        foreach (var thread in threads) thread.Start();
        _hangs = !Array.TrueForAll(threads, static thread => thread.Join(Host.Patience));
        Assert.False(_hangs, $"hangs with {history.Strategy}: {handler.Error}");
        Assert.True(failures[0] is null && failures[1] is null, $"{history.Strategy}: {failures[0] ?? failures[1]}; handler: {handler.Error}");
        Assert.Null(handler.Error);
    });

    private static void Live(GuestMemoryMmap memory, GuestRegionMmap region, ServedHistory.Step[] steps, int half)
    {
        var expected = new int[Pages];
        for (var i = 0; i < Pages; i++) expected[i] = i;
        var page = new byte[4096];
        var model = new byte[4096];
        for (var i = 0; i < steps.Length; i++)
        {
            // Blocks of eight pages in turn belong to the two threads.
            var number = (steps[i].Block % (Pages / 16) * 16) + (half * 8) + (steps[i].Page % 8);
            var at = new GuestAddress((ulong)number * 4096);
            switch (steps[i].Operation)
            {
                case ServedHistory.Operation.Write:
                    TestFolder.Fill(page, expected[number] = 1_000_000 + steps[i].Value);
                    memory.WriteExact(at, page);
                    break;
                case ServedHistory.Operation.Discard:
                    var count = 1 + (steps[i].Value % (8 - (number % 8)));
                    region.GetMmapRegion().Discard((ulong)number * 4096, (ulong)count * 4096);
                    expected.AsSpan(number, count).Fill(-1);
                    break;
                default:
                    memory.ReadExact(at, page);
                    if (expected[number] < 0) model.AsSpan().Clear();
                    else TestFolder.Fill(model, expected[number]);
                    Assert.True(model.AsSpan().SequenceEqual(page), $"page {number} in step {i}");
                    break;
            }
        }
    }

    private void ForAWhile<T>(FsCheck.Arbitrary<T> cases, Action<T> round) => _output.WriteLine($"{Stress.CheckFor(s_time, cases, round)} rounds");
}
