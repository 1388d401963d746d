using System.Buffers;
using System.Text;
using System.Text.RegularExpressions;

namespace GuestMemory.Core;

/// <summary>A regular expression over bytes, which are taken for the characters of the same numbers.</summary>
internal sealed class RegexPattern : MemoryPattern
{
    private readonly Regex _regex;

    private RegexPattern(Regex regex, string text)
        : base(text) => _regex = regex;

    internal override int Reach => MaxLength;

    internal override bool IsExclusive => true;

    public static RegexPattern Make(string expression, bool ignoreCase)
    {
        ArgumentNullException.ThrowIfNull(expression);
        try
        {
            var options = RegexOptions.NonBacktracking | RegexOptions.CultureInvariant | (ignoreCase ? RegexOptions.IgnoreCase : 0);
            return new RegexPattern(new Regex(expression, options, Regex.InfiniteMatchTimeout), expression);
        }
        catch (ArgumentException exception)
        {
            throw Invalid(expression, $"it is not a regular expression ({exception.Message.TrimEnd('.')})", exception);
        }
        catch (NotSupportedException exception)
        {
            throw Invalid(expression, "only expressions without look-around and back references are supported, which take time in proportion to the memory", exception);
        }
    }

    /// <summary>What the expression says of the bytes around a match is not known here, so every match of the block counts.</summary>
    internal override bool IsMatch(ReadOnlySpan<byte> bytes) => true;

    internal override void Find(ReadOnlySpan<byte> block, int from, int until, ulong alignment, ulong address, Func<int, int, bool> found)
    {
        var characters = ArrayPool<char>.Shared.Rent(block.Length);
        try
        {
            Encoding.Latin1.GetChars(block, characters);
            foreach (var match in _regex.EnumerateMatches(characters.AsSpan(0, block.Length), from))
            {
                if (match.Index >= until) return;
                if (match.Length > 0 && (address + (ulong)match.Index) % alignment == 0 && !found(match.Index, Math.Min(match.Length, MaxLength))) return;
            }
        }
        finally
        {
            ArrayPool<char>.Shared.Return(characters);
        }
    }
}
