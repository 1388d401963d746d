using System.Numerics;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

namespace GuestMemory.Core;

/// <summary>Bytes, of which some bits may be left open.</summary>
/// <remarks>
/// Two of the bytes are looked for at once, 32 places a step, and the rest only where both are there: the two that are rarest in
/// memory, by a guess. Memory is mostly zeros, then bytes of all ones and text.
/// </remarks>
internal sealed unsafe class BytePattern : MemoryPattern
{
    // Where matches lie so far apart each place is looked at by itself.
    private const ulong Sparse = 64;

    private readonly byte[] _values;
    private readonly byte[] _masks;
    private readonly int _first;
    private readonly int _second;

    /// <param name="values">The bytes; 0 in the bits that are open.</param>
    /// <param name="masks">The bits of each that count.</param>
    /// <param name="text">The pattern as it was given.</param>
    public BytePattern(byte[] values, byte[] masks, string text)
        : base(text)
    {
        if (values.Length == 0) throw Invalid(text, "it is empty");
        if (values.Length > MaxLength) throw Invalid(text, $"it has {values.Length} bytes; a pattern may have {MaxLength}");
        if (!masks.AsSpan().ContainsAnyExcept((byte)0)) throw Invalid(text, "it leaves every bit open, so that it would be found everywhere");
        _values = values;
        _masks = masks;
        var places = Enumerable.Range(0, values.Length).OrderBy(i => Frequency(values[i], masks[i])).Take(2).ToArray();
        (_first, _second) = (places[0], places[^1]);
    }

    internal override int Reach => _values.Length;

    internal override bool IsMatch(ReadOnlySpan<byte> bytes)
    {
        if (bytes.Length != _values.Length) return false;
        for (var i = 0; i < bytes.Length; i++)
        {
            if ((bytes[i] & _masks[i]) != _values[i]) return false;
        }

        return true;
    }

    internal override void Find(ReadOnlySpan<byte> block, int from, int until, ulong alignment, ulong address, Func<int, int, bool> found)
    {
        var length = _values.Length;
        until = Math.Min(until, block.Length - length + 1);
        if (alignment >= Sparse)
        {
            for (var at = from + (long)((alignment - (address + (ulong)from) % alignment) % alignment); at < until; at += (long)Math.Min(alignment, int.MaxValue))
            {
                if (IsMatch(block.Slice((int)at, length)) && !found((int)at, length)) return;
            }

            return;
        }

        fixed (byte* start = block)
        {
            for (var at = from; at < until; at++)
            {
                at = Next(start, at, until);
                if (at >= until) return;
                if ((address + (ulong)at) % alignment == 0 && !found(at, length)) return;
            }
        }
    }

    /// <summary>How often such a byte is guessed to be in memory: the more open bits, the more often.</summary>
    private static int Frequency(byte value, byte mask) => (8 - BitOperations.PopCount(mask)) * 16 + value switch
    {
        0 => 15,
        0xff => 14,
        (byte)' ' or (byte)'e' or (byte)'t' or (byte)'a' or 0x48 or 0x8b or 1 => 4,
        < 0x80 => 2,
        _ => 1,
    };

    /// <summary>The first match that begins from <paramref name="at"/> on and before <paramref name="until"/>, or that. All bytes of such a match are there.</summary>
    private int Next(byte* start, int at, int until)
    {
        if (Vector256.IsHardwareAccelerated)
        {
            var (value1, mask1) = (Vector256.Create(_values[_first]), Vector256.Create(_masks[_first]));
            var (value2, mask2) = (Vector256.Create(_values[_second]), Vector256.Create(_masks[_second]));
            for (; at <= until - Vector256<byte>.Count; at += Vector256<byte>.Count)
            {
                var places = Vector256.Equals(Vector256.Load(start + at + _first) & mask1, value1) & Vector256.Equals(Vector256.Load(start + at + _second) & mask2, value2);
                if (places == Vector256<byte>.Zero) continue;
                if (Check(start, at, places.ExtractMostSignificantBits()) is var match and >= 0) return match;
            }
        }
        else if (Vector128.IsHardwareAccelerated)
        {
            var (value1, mask1) = (Vector128.Create(_values[_first]), Vector128.Create(_masks[_first]));
            var (value2, mask2) = (Vector128.Create(_values[_second]), Vector128.Create(_masks[_second]));
            for (; at <= until - Vector128<byte>.Count; at += Vector128<byte>.Count)
            {
                var places = Vector128.Equals(Vector128.Load(start + at + _first) & mask1, value1) & Vector128.Equals(Vector128.Load(start + at + _second) & mask2, value2);
                if (places == Vector128<byte>.Zero) continue;
                if (Check(start, at, places.ExtractMostSignificantBits()) is var match and >= 0) return match;
            }
        }

        while (at < until && !IsMatch(MemoryMarshal.CreateReadOnlySpan(ref start[at], _values.Length))) at++;
        return at;
    }

    private int Check(byte* start, int at, uint places)
    {
        for (; places != 0; places &= places - 1)
        {
            var place = at + BitOperations.TrailingZeroCount(places);
            if (IsMatch(MemoryMarshal.CreateReadOnlySpan(ref start[place], _values.Length))) return place;
        }

        return -1;
    }
}
