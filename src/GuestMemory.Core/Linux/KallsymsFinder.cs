using System.Buffers.Binary;

namespace GuestMemory.Core.Linux;

/// <summary>Finds the tables of a kernel's symbols by what they look like, where nothing says where they are.</summary>
internal static class KallsymsFinder
{
    // Of 150 000 symbols the names have 2 MiB, what stands between them and the tokens 0.5.
    private const int Window = 16 << 20;

    // A marker is where each 256th name begins.
    private const int Step = 256;
    private const int LeastMarkers = 16;

    // A kernel has one such table, and a memory that was made to take long may have millions.
    private const int MaxMatches = 1000;
    private const int MaxTables = 16;
    private const int MaxWalks = 8;

    /// <summary>The texts of the tokens 0x30 to 0x39, digits, which no kernel uses for anything else.</summary>
    public static MemoryPattern Digits { get; } = MemoryPattern.FromBytes([.. Enumerable.Range('0', 10).SelectMany(static digit => new byte[] { (byte)digit, 0 })]);

    /// <summary>Where the tables may be, by the places of the digits: each with the one place of the addresses and with the other.</summary>
    public static IEnumerable<KallsymsPlaces> Find(GuestMemoryMmap memory, IEnumerable<MemoryMatch> digits, CancellationToken cancellation) =>
        digits.Take(MaxMatches).Select(match => FindTokens(memory, match.Address, cancellation)).OfType<(ulong, ulong)>().Take(MaxTables).SelectMany(tokens => Find(memory, tokens, cancellation));

    private static IEnumerable<KallsymsPlaces> Find(GuestMemoryMmap memory, (ulong Table, ulong Index) tokens, CancellationToken cancellation)
    {
        // The kernel's image lies in one region.
        var first = memory.FindRegion(new GuestAddress(tokens.Table))!.GuestAddress;
        var start = Math.Max(first, tokens.Table - Math.Min(tokens.Table, Window) & ~7UL);
        var window = KernelData.Read(memory, start, (long)(tokens.Table - start), "What stands before the kernel's symbol tokens", cancellation);
        if (FindNames(window, cancellation) is not { } names) return [];
        var count = BinaryPrimitives.ReadUInt32LittleEndian(window.AsSpan(names - 8));
        var offsetsSize = (4UL * count) + 7 & ~7UL;
        var place = new KallsymsPlaces(start + (ulong)names - 8, start + (ulong)names, tokens.Table, tokens.Index, 0, null, 0);
        return [
            // Since 6.4 behind the tokens, before that before the names.
            place with { Offsets = tokens.Index + 512, RelativeBase = tokens.Index + 512 + offsetsSize },
            place with { Offsets = place.Count - 8 - offsetsSize, RelativeBase = place.Count - 8 },
        ];
    }

    private static (ulong Table, ulong Index)? FindTokens(GuestMemoryMmap memory, ulong digits, CancellationToken cancellation)
    {
        // The index stands behind the table, which has a thousand bytes.
        var bytes = KernelData.ReadSome(memory, digits, 16384, cancellation);
        for (var at = (int)(8 - (digits % 8)) % 8; at + 512 <= bytes.Length; at += 8)
        {
            var index = bytes.AsSpan(at, 512);
            if (BinaryPrimitives.ReadUInt16LittleEndian(index) != 0) continue;
            int first = BinaryPrimitives.ReadUInt16LittleEndian(index[(2 * '0')..]);
            if ((ulong)first > digits || BinaryPrimitives.ReadUInt16LittleEndian(index[(2 * '1')..]) != first + 2) continue;
            var table = digits - (ulong)first;
            if (!memory.CheckRange(new GuestAddress(table), (ulong)(first + at))) continue;
            var texts = KernelData.Read(memory, table, first + at, "The table of tokens", cancellation);
            if (IsIndex(texts, index)) return (table, digits + (ulong)at);
        }

        return null;
    }

    private static bool IsIndex(ReadOnlySpan<byte> table, ReadOnlySpan<byte> index)
    {
        for (var i = 1; i < 256; i++)
        {
            // Each begins behind the NUL of the one before.
            int before = BinaryPrimitives.ReadUInt16LittleEndian(index[(2 * (i - 1))..]);
            int start = BinaryPrimitives.ReadUInt16LittleEndian(index[(2 * i)..]);
            if (start <= before || start >= table.Length || table[before..start].IndexOf((byte)0) != start - before - 1) return false;
        }

        return true;
    }

    /// <summary>Where in a block the names begin, the number of which stands before them.</summary>
    internal static int? FindNames(byte[] block, CancellationToken cancellation)
    {
        if (FindMarkers(block) is not var (markers, count)) return null;
        var last = (int)Marker(count - 1);
        // A memory that was made to take long looks right at many places, up to the end of each: so much is walked for all of them.
        var budget = MaxWalks * (long)block.Length;
        // The names of the last marker end there, but for the alignment.
        for (var names = markers - last & ~7; names >= 8 && names > markers - last - (Step * 512) && budget > 0; names -= 8)
        {
            var number = BinaryPrimitives.ReadUInt32LittleEndian(block.AsSpan(names - 8));
            if ((number + Step - 1) / Step != count || BinaryPrimitives.ReadUInt32LittleEndian(block.AsSpan(names - 4)) != 0) continue;
            cancellation.ThrowIfCancellationRequested();
            if (Fits(block.AsSpan(names, markers - names), (int)number)) return names;
        }

        return null;

        uint Marker(int i) => BinaryPrimitives.ReadUInt32LittleEndian(block.AsSpan(markers + (4 * i)));

        bool Fits(ReadOnlySpan<byte> names, int number)
        {
            var at = 0;
            for (var i = 0; i < number; i++)
            {
                if (i % Step == 0 && at != (int)Marker(i / Step)) break;
                if (Kallsyms.Next(names, at) is not { } next) break;
                at = next;
                if (i == number - 1) return true;
            }

            budget -= at;
            return false;
        }
    }

    /// <summary>The longest row of numbers that begins with 0 and rises as the places of names do.</summary>
    private static (int Start, int Count)? FindMarkers(byte[] block)
    {
        (int Start, int Count) best = (0, 0);
        for (var at = 0; at + 8 <= block.Length; at += 8)
        {
            if (BinaryPrimitives.ReadUInt32LittleEndian(block.AsSpan(at)) != 0) continue;
            var count = 1;
            uint before = 0;
            for (; at + (4 * count) + 4 <= block.Length; count++)
            {
                var marker = BinaryPrimitives.ReadUInt32LittleEndian(block.AsSpan(at + (4 * count)));
                // The names stand before their markers.
                if (marker <= before || marker > (uint)at || marker - before is < 2 * Step or > 512 * Step) break;
                before = marker;
            }

            if (count > best.Count) best = (at, count);
        }

        return best.Count < LeastMarkers ? null : best;
    }
}
