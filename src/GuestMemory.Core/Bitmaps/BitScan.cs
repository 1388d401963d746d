using System.Numerics;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace GuestMemory.Core;

/// <summary>
/// Counts and lists the set bits of words; page i stands in word i / 64, bit i % 64. Each word is read once, so that the words may be
/// marked and taken meanwhile. Unsafe: the listing loops write ahead of what they keep, inside the room they checked.
/// </summary>
internal static unsafe class BitScan
{
    // Written without counting them first: at low densities nearly every word has fewer, and no branch is mispredicted.
    private const int Ahead = 4;
    private const int Step = 8;
    private const int Room = Ahead + 64 + Step;

    /// <summary>What is listed of a word: its bits, or the edges between its zeros and ones.</summary>
    private interface IMarks
    {
        static abstract ulong Of(ulong word, ref ulong carry);

        /// <summary>The word in which there is nothing to list.</summary>
        static abstract ulong Idle(ulong carry);
    }

    public static bool Any(ReadOnlySpan<ulong> words) => words.ContainsAnyExcept(0UL);

    public static long Count(ReadOnlySpan<ulong> words)
    {
        long count = 0;
        if (Avx2.IsSupported)
        {
            var whole = words.Length & -Vector256<ulong>.Count;
            fixed (ulong* first = words) count = CountByShuffle(first, whole);
            words = words[whole..];
        }

        foreach (var word in words) count += BitOperations.PopCount(word);
        return count;
    }

    /// <summary>Lists the set bits from <paramref name="from"/> on, until <paramref name="pages"/> is full.</summary>
    public static int ListPages(ReadOnlySpan<ulong> words, long from, Span<long> pages)
    {
        ulong carry = 0;
        return List<Bits>(words, from, pages, ref carry);
    }

    /// <summary>Lists the runs of set bits from <paramref name="from"/> on, until <paramref name="runs"/> is full.</summary>
    public static int ListRuns(ReadOnlySpan<ulong> words, long from, Span<PageRun> runs)
    {
        // Edges come in pairs: where a run begins, and where it ends.
        var edges = MemoryMarshal.Cast<PageRun, long>(runs);
        ulong carry = 0;
        var count = List<Edges>(words, from, edges, ref carry);
        if ((count & 1) != 0) edges[count++] = (long)words.Length << 6;
        return count / 2;
    }

    /// <summary>The next bit from <paramref name="first"/> on that is set, or is not; <paramref name="end"/> where there is none before.</summary>
    public static ulong Next(ulong* words, ulong first, ulong end, bool set)
    {
        while (first < end)
        {
            var word = Volatile.Read(ref words[first >> 6]);
            if (!set) word = ~word;
            word &= ulong.MaxValue << (int)(first & 63);
            if (word != 0) return Math.Min(end, (first & ~63UL) + (ulong)BitOperations.TrailingZeroCount(word));
            first = (first | 63) + 1;
        }

        return end;
    }

    private static int List<TMarks>(ReadOnlySpan<ulong> words, long from, Span<long> output, ref ulong carry)
        where TMarks : struct, IMarks
    {
        var count = 0;
        var index = (int)Math.Min(from >> 6, words.Length);
        var mask = ulong.MaxValue << (int)(from & 63);
        fixed (ulong* word = words)
        fixed (long* list = output)
        {
            while (index < words.Length)
            {
                if (index + Step <= words.Length)
                {
                    var idle = Vector256.Create(TMarks.Idle(carry));
                    var different = (Vector256.Load(word + index) ^ idle) | (Vector256.Load(word + index + 4) ^ idle);
                    if (different == Vector256<ulong>.Zero)
                    {
                        index += Step;
                        mask = ulong.MaxValue;
                        continue;
                    }
                }

                for (var end = Math.Min(index + Step, words.Length); index < end; index++)
                {
                    var marks = TMarks.Of(word[index] & mask, ref carry);
                    mask = ulong.MaxValue;
                    if (output.Length - count >= Room)
                    {
                        count += Write(list + count, (long)index << 6, marks);
                        continue;
                    }

                    for (; marks != 0 && count < output.Length; marks &= marks - 1)
                    {
                        list[count++] = ((long)index << 6) + BitOperations.TrailingZeroCount(marks);
                    }

                    if (count == output.Length) return count;
                }
            }
        }

        return count;
    }

    private static int Write(long* list, long first, ulong marks)
    {
        var count = BitOperations.PopCount(marks);
        list[0] = first + BitOperations.TrailingZeroCount(marks);
        marks &= marks - 1;
        list[1] = first + BitOperations.TrailingZeroCount(marks);
        marks &= marks - 1;
        list[2] = first + BitOperations.TrailingZeroCount(marks);
        marks &= marks - 1;
        list[3] = first + BitOperations.TrailingZeroCount(marks);
        for (var at = Ahead; at < count; at += Step)
        {
            for (var i = 0; i < Step; i++)
            {
                marks &= marks - 1;
                list[at + i] = first + BitOperations.TrailingZeroCount(marks);
            }
        }

        return count;
    }

    /// <summary>Counts the bits of each half byte by looking them up, 32 at a time; whole vectors only.</summary>
    private static long CountByShuffle(ulong* at, int length)
    {
        var table = Vector256.Create((byte)0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
        var low = Vector256.Create((byte)15);
        var sum = Vector256<ulong>.Zero;
        for (var end = at + length; at < end;)
        {
            // A byte holds the counts of 31 vectors, 8 each.
            var stop = end - at > 31 * 4 ? at + 31 * 4 : end;
            var bytes = Vector256<byte>.Zero;
            for (; at < stop; at += 4)
            {
                var bits = Vector256.Load((byte*)at);
                bytes += Avx2.Shuffle(table, bits & low) + Avx2.Shuffle(table, (bits.AsUInt16() >>> 4).AsByte() & low);
            }

            sum += Avx2.SumAbsoluteDifferences(bytes, Vector256<byte>.Zero).AsUInt64();
        }

        return (long)Vector256.Sum(sum);
    }

    private readonly struct Bits : IMarks
    {
        public static ulong Of(ulong word, ref ulong carry) => word;

        public static ulong Idle(ulong carry) => 0;
    }

    private readonly struct Edges : IMarks
    {
        public static ulong Of(ulong word, ref ulong carry)
        {
            var edges = word ^ (word << 1 | carry);
            carry = word >> 63;
            return edges;
        }

        public static ulong Idle(ulong carry) => 0 - carry;
    }
}
