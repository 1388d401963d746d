using System.Buffers.Binary;

namespace GuestMemory.Core.Tests;

/// <summary>A folder for one test, with a path short enough for sockets; gone afterwards.</summary>
public sealed class TestFolder : IDisposable
{
    public TestFolder() => Path = Directory.CreateTempSubdirectory("gm-").FullName;

    public string Path { get; }

    public string this[string name] => System.IO.Path.Combine(Path, name);

    public void Dispose() => Directory.Delete(Path, recursive: true);

    /// <summary>An image of which every page is filled with a number of its own.</summary>
    public string WriteImage(string name, int pages, int pageSize = 4096, int firstNumber = 0)
    {
        using var file = File.Create(this[name]);
        var page = new byte[pageSize];
        for (var i = 0; i < pages; i++)
        {
            Fill(page, firstNumber + i);
            file.Write(page);
        }

        return this[name];
    }

    public static void Fill(Span<byte> page, int number)
    {
        var word = (ulong)(number + 1) * 0x9E3779B97F4A7C15;
        for (var at = 0; at < page.Length; at += 8) BinaryPrimitives.WriteUInt64LittleEndian(page[at..], word);
    }

    /// <summary>Pages of 4096 bytes at the addresses that follow from their numbers.</summary>
    public static void AssertPages(GuestMemoryMmap memory, int first, int count) => AssertPages(memory, (ulong)first * 4096, first, count);

    /// <summary>
    /// Each page has its number in it, and comes: a read that waits for ever is given up. That takes a timer and
    /// a thread, for which a process without descriptors has no room; there it is not limited.
    /// </summary>
    public static void AssertPages(GuestMemoryMmap memory, ulong address, int firstNumber, int count, int pageSize = 4096, bool isLimited = true)
    {
        var page = new byte[pageSize];
        var expected = new byte[pageSize];
        for (var i = 0; i < count; i++)
        {
            var at = new GuestAddress(address + ((ulong)i * (ulong)pageSize));
            using var limit = isLimited ? new CancellationTokenSource(Host.Patience) : null;
            if (limit is null) memory.ReadExact(at, page);
            else memory.ReadExact(at, page.AsMemory(), limit.Token);
            Fill(expected, firstNumber + i);
            Assert.True(expected.AsSpan().SequenceEqual(page), $"page {firstNumber + i}");
        }
    }
}
