using System.Diagnostics;
using System.Globalization;
using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>
/// Random and mutated hand-overs, and random histories of a VM's memory, for as many seconds as GUESTMEMORY_FUZZ_SECONDS says (20,
/// shared by the tests). A failure names its seed; GUESTMEMORY_FUZZ_SEED begins with it.
/// </summary>
public sealed class FuzzTests : IDisposable
{
    private const int Pages = 512;
    private static readonly TimeSpan s_time = TimeSpan.FromSeconds(double.Parse(Environment.GetEnvironmentVariable("GUESTMEMORY_FUZZ_SECONDS") ?? "20", CultureInfo.InvariantCulture) / 3);
    private static readonly int s_seed = int.Parse(Environment.GetEnvironmentVariable("GUESTMEMORY_FUZZ_SEED") ?? "1", CultureInfo.InvariantCulture);
    private readonly TestFolder _folder = new();

    private readonly ITestOutputHelper _output;

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
        ForAWhile(random =>
        {
            var json = Mutate(random, UffdMappingList.ToJson(RandomList(random)));
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
        Assert.True(read > 10 && refused > 10, $"{read} read, {refused} refused");
    }

    [UffdFact]
    public void AHandlerOutlivesWhatPeersSend()
    {
        using var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], HandoverTimeout = TimeSpan.FromMilliseconds(100) });
        Host.Until(() => Host.Threads("uffd-readahead") == 0);
        var before = Host.Resources();
        ForAWhile(random =>
        {
            using var peer = new RawPeer(handler.SocketPath);
            var bytes = Mutate(random, UffdMappingList.ToJson(RandomList(random))).AsSpan();
            while (!bytes.IsEmpty)
            {
                var part = random.Next(4) == 0 ? random.Next(1, bytes.Length + 1) : bytes.Length;
                peer.Send(bytes[..part], random.Next(8) == 0 ? random.Next(0, 4) : 1);
                bytes = bytes[part..];
            }
        });
        Host.Until(() => handler.ConnectionCount == 0 && Host.Resources() == before);
        Assert.Equal((0, before), (handler.ConnectionCount, Host.Resources()));
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        Assert.Equal(Pages, UffdTouch.Run(memory, new UffdTouchOptions { Pattern = UffdTouchPattern.Random }).TouchCount);
    }

    /// <summary>Reads, writes and removals by two threads, on pages of their own, with every strategy: each page is always what it must be.</summary>
    [UffdFact]
    public void MemoryIsWhatItsHistorySays() => ForAWhile(random =>
    {
        UffdStrategy[] strategies = [UffdStrategy.OnDemand, UffdStrategy.Background, UffdStrategy.FaultAll, UffdStrategy.Window, UffdStrategy.Replay];
        var strategy = strategies[random.Next(strategies.Length)];
        var order = Enumerable.Range(0, Pages).Select(page => (uint)page).ToArray();
        random.Shuffle(order);
        TouchRecord.Save(_folder["touches"], Pages * 4096, order.AsSpan(0, random.Next(Pages)));
        using var handler = UffdHandler.Start(new UffdHandlerOptions
        {
            SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = strategy, WindowSize = 4096UL << random.Next(6), TrackDirty = random.Next(2) == 0,
            ReplayPath = strategy == UffdStrategy.Replay ? _folder["touches"] : null,
        });
        using var region = new GuestRegionMmap(random.Next(2) == 0 ? new MmapRegionBuilder(Pages * 4096).Build() : new MmapRegionBuilder(Pages * 4096).WithMemfd().Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        var seeds = new[] { random.Next(), random.Next() };
        var failures = new Exception?[2];
        var threads = seeds.Select((seed, half) => new Thread(() => failures[half] = Record.Exception(() => Live(memory, region, new Random(seed), half)))).ToArray();
        foreach (var thread in threads) thread.Start();
        foreach (var thread in threads) Assert.True(thread.Join(TimeSpan.FromSeconds(60)), $"hung with {strategy}: {handler.Error}");
        Assert.True(failures[0] is null && failures[1] is null, $"{strategy}: {failures[0] ?? failures[1]}; handler: {handler.Error}");
        Assert.Null(handler.Error);
    });

    private static void Live(GuestMemoryMmap memory, GuestRegionMmap region, Random random, int half)
    {
        var expected = new int[Pages];
        for (var i = 0; i < Pages; i++) expected[i] = i;
        var page = new byte[4096];
        var model = new byte[4096];
        for (var step = 0; step < 1500; step++)
        {
            // Blocks of eight pages in turn belong to the two threads.
            var number = (random.Next(Pages / 16) * 16) + (half * 8) + random.Next(8);
            var at = new GuestAddress((ulong)number * 4096);
            switch (random.Next(6))
            {
                case 0:
                    TestFolder.Fill(page, expected[number] = 1_000_000 + random.Next(1000));
                    memory.WriteExact(at, page);
                    break;
                case 1:
                    var count = random.Next(1, 9 - (number % 8));
                    region.GetMmapRegion().Discard((ulong)number * 4096, (ulong)count * 4096);
                    expected.AsSpan(number, count).Fill(-1);
                    break;
                default:
                    memory.ReadExact(at, page);
                    if (expected[number] < 0) model.AsSpan().Clear();
                    else TestFolder.Fill(model, expected[number]);
                    Assert.True(model.AsSpan().SequenceEqual(page), $"page {number} in step {step}");
                    break;
            }
        }
    }

    private void ForAWhile(Action<Random> round)
    {
        var clock = Stopwatch.StartNew();
        var seed = s_seed;
        for (; clock.Elapsed < s_time || seed == s_seed; seed++)
        {
            try
            {
                round(new Random(seed));
            }
            catch (Exception exception)
            {
                throw new InvalidOperationException($"seed {seed}: {exception.Message}", exception);
            }
        }

        _output.WriteLine($"{seed - s_seed} rounds");
    }

    private static GuestRegionUffdMapping[] RandomList(Random random)
    {
        var list = new GuestRegionUffdMapping[random.Next(1, 6)];
        ulong offset = 0;
        for (var i = 0; i < list.Length; i++)
        {
            var size = (ulong)random.Next(1, 64) * 4096;
            list[i] = new GuestRegionUffdMapping(((ulong)i << 32) + ((ulong)random.Next(1, 1 << 20) * 4096), size, offset, 4096);
            offset += size;
        }

        return list;
    }

    private static byte[] Mutate(Random random, byte[] json)
    {
        ReadOnlySpan<string> numbers = ["0", "-1", "4095", "4096", "18446744073709551615", "18446744073709547520", "18446744073709551616", "1e3", "null", "\"\"", "[]", "{}", "true", "9223372036854775808"];
        var text = Encoding.UTF8.GetString(json);
        for (var times = random.Next(4); times > 0 && text.Length > 2; times--)
        {
            var at = random.Next(text.Length);
            switch (random.Next(6))
            {
                case 0:
                    text = text[..at] + (char)random.Next(1, 256) + text[(at + 1)..];
                    break;
                case 1:
                    text = text.Remove(at, Math.Min(random.Next(1, 20), text.Length - at));
                    break;
                case 2:
                    text = text.Insert(at, text.Substring(at, Math.Min(random.Next(1, 40), text.Length - at)));
                    break;
                case 3:
                    text = text[..at];
                    break;
                default:
                    // A number becomes another.
                    var colon = text.IndexOf(':', at);
                    var end = colon < 0 ? -1 : text.IndexOfAny([',', '}'], colon);
                    if (end > colon) text = text[..(colon + 1)] + numbers[random.Next(numbers.Length)] + text[end..];
                    break;
            }
        }

        return random.Next(50) == 0 ? Random(random, json.Length) : Encoding.Latin1.GetBytes(text);
    }

    private static byte[] Random(Random random, int length)
    {
        var bytes = new byte[length];
        random.NextBytes(bytes);
        return bytes;
    }
}
