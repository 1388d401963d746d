using System.Text;

namespace GuestMemory.Core;

/// <summary>What is searched for in guest memory: bytes, of which some may be left open, text, or a regular expression over bytes.</summary>
public abstract class MemoryPattern
{
    /// <summary>The most bytes that a pattern may have, and that a match of a regular expression is given with.</summary>
    public const int MaxLength = 4096;

    private protected MemoryPattern(string text) => Text = text;

    /// <summary>The pattern, as text.</summary>
    public string Text { get; }

    /// <summary>How many bytes a match has at most, from 1 to <see cref="MaxLength"/>.</summary>
    internal abstract int Reach { get; }

    /// <summary>Whether a match begins only where the one before has ended.</summary>
    internal virtual bool IsExclusive => false;

    /// <summary>
    /// Reads hexadecimal bytes: "55 8b ?? 5d", with or without spaces. A question mark leaves four bits open: ?? a whole byte, 4? the
    /// lower half of one.
    /// </summary>
    /// <exception cref="GuestMemoryException">InvalidPattern: it is no such text, leaves every bit open, or is too long.</exception>
    public static MemoryPattern Parse(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        var values = new List<byte>();
        var masks = new List<byte>();
        foreach (var word in text.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries))
        {
            foreach (var digit in word) Digit(digit);
            if (word.Length % 2 != 0) throw Invalid(text, $"'{word}' has an odd number of digits; a byte has two, and a question mark stands for one of them");
            for (var i = 0; i < word.Length; i += 2)
            {
                values.Add((byte)(Digit(word[i]).Value << 4 | Digit(word[i + 1]).Value));
                masks.Add((byte)(Digit(word[i]).Mask << 4 | Digit(word[i + 1]).Mask));
            }
        }

        return new BytePattern([.. values], [.. masks], text);

        (int Value, int Mask) Digit(char digit) => digit == '?' ? (0, 0)
            : char.IsAsciiHexDigit(digit) ? (Convert.ToInt32(digit.ToString(), 16), 0xf)
            : throw Invalid(text, $"'{digit}' is neither a hexadecimal digit nor a question mark");
    }

    /// <summary>These bytes.</summary>
    /// <exception cref="GuestMemoryException">InvalidPattern: there are none, or more than <see cref="MaxLength"/>.</exception>
    public static MemoryPattern FromBytes(ReadOnlySpan<byte> bytes) => FromBytes(bytes.ToArray(), Convert.ToHexStringLower(bytes));

    /// <summary>A text as an encoding writes it.</summary>
    /// <param name="text">The text.</param>
    /// <param name="encoding">The encoding; UTF-8 where none is given.</param>
    /// <param name="ignoreCase">Whether the letters A to Z may have either case; others have the case they are given in.</param>
    /// <exception cref="GuestMemoryException">InvalidPattern: the text is empty, too long, or has characters that the encoding lacks.</exception>
    public static MemoryPattern FromText(string text, Encoding? encoding = null, bool ignoreCase = false)
    {
        ArgumentNullException.ThrowIfNull(text);
        encoding = (Encoding)(encoding ?? Encoding.UTF8).Clone();
        encoding.EncoderFallback = EncoderFallback.ExceptionFallback;
        try
        {
            var bytes = encoding.GetBytes(text);
            if (!ignoreCase) return FromBytes(bytes, text);
            // The two cases of such a letter differ in one bit, wherever the encoding puts it.
            var upper = encoding.GetBytes(string.Create(text.Length, text, static (to, from) => ChangeCase(from, to, char.ToUpperInvariant)));
            var lower = encoding.GetBytes(string.Create(text.Length, text, static (to, from) => ChangeCase(from, to, char.ToLowerInvariant)));
            if (upper.Length != lower.Length) throw Invalid(text, $"the encoding {encoding.WebName} writes its upper and lower case letters in different lengths");
            var masks = new byte[upper.Length];
            for (var i = 0; i < masks.Length; i++) masks[i] = (byte)~(upper[i] ^ lower[i]);
            for (var i = 0; i < masks.Length; i++) lower[i] &= masks[i];
            return new BytePattern(lower, masks, text);
        }
        catch (EncoderFallbackException exception)
        {
            throw Invalid(text, $"the encoding {encoding.WebName} does not have the character '{exception.CharUnknown}'", exception);
        }
    }

    /// <summary>
    /// A regular expression over bytes: each byte is the character of the same number (Latin-1), so that \x00 to \xff stand for bytes.
    /// It runs in linear time: look-around and back references are refused. Matches of no bytes do not count, ^ stands for the
    /// beginning of a run of memory, and a match is given with its first <see cref="MaxLength"/> bytes.
    /// </summary>
    /// <param name="expression">The expression, in .NET's syntax.</param>
    /// <param name="ignoreCase">Whether letters may have either case.</param>
    /// <exception cref="GuestMemoryException">InvalidPattern: it is no regular expression, or not one of this kind.</exception>
    public static MemoryPattern FromRegex(string expression, bool ignoreCase = false) => RegexPattern.Make(expression, ignoreCase);

    /// <summary>The pattern as it was given.</summary>
    public override string ToString() => Text;

    /// <summary>
    /// Lists the matches that begin in a part of a block, in ascending order.
    /// </summary>
    /// <param name="block">The block; what stands before and behind the part is there for matches that reach out of it.</param>
    /// <param name="from">Where in the block the part begins.</param>
    /// <param name="until">Where it ends.</param>
    /// <param name="alignment">Matches begin at multiples of it, counted from <paramref name="address"/>.</param>
    /// <param name="address">The guest address of the block's first byte.</param>
    /// <param name="found">Told where a match begins and how many bytes it has; false ends the search.</param>
    internal abstract void Find(ReadOnlySpan<byte> block, int from, int until, ulong alignment, ulong address, Func<int, int, bool> found);

    /// <summary>Whether bytes that were copied out of a match are one: others may have written them meanwhile.</summary>
    internal abstract bool IsMatch(ReadOnlySpan<byte> bytes);

    internal static GuestMemoryException Invalid(string text, string why, Exception? inner = null) =>
        new(GuestMemoryError.InvalidPattern, $"'{(text.Length > 80 ? text[..80] + "..." : text)}' cannot be searched for: {why}.", inner);

    private static BytePattern FromBytes(byte[] bytes, string text)
    {
        var masks = new byte[bytes.Length];
        masks.AsSpan().Fill(0xff);
        return new BytePattern(bytes, masks, text);
    }

    private static void ChangeCase(string from, Span<char> to, Func<char, char> change)
    {
        for (var i = 0; i < to.Length; i++) to[i] = char.IsAsciiLetter(from[i]) ? change(from[i]) : from[i];
    }
}
