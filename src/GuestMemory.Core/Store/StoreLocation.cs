using System.Text.RegularExpressions;

namespace GuestMemory.Core.Store;

/// <summary>
/// Where an image is: the store, the image's name, and its generation where one is asked for: <c>/srv/store/web</c>, <c>/srv/store/web@7</c>.
/// </summary>
/// <param name="Store">The store: a directory.</param>
/// <param name="Name">The name of the image.</param>
/// <param name="Generation">The generation; null for the latest.</param>
public sealed partial record StoreLocation(string Store, string Name, ulong? Generation)
{
    /// <summary>Reads a location.</summary>
    /// <param name="text">The path or address of the store, '/', the name of the image, and '@' with a generation.</param>
    /// <exception cref="GuestMemoryException">ValueNotSupported: it is none.</exception>
    public static StoreLocation Parse(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        var at = text.LastIndexOf('/');
        if (at < 0 || Pattern().Match(text[(at + 1)..]) is not { Success: true } match || (match.Groups["generation"] is { Success: true } generation && (!ulong.TryParse(generation.Value, out var number) || number == 0)))
        {
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported,
                $"'{text}' does not name a stored image: give the store, '/', the image's name (letters, digits, '.', '-' and '_'), and '@' with a number for a generation other than the latest.");
        }

        return new StoreLocation(at == 0 ? "/" : text[..at], match.Groups["name"].Value, match.Groups["generation"].Success ? ulong.Parse(match.Groups["generation"].Value) : null);
    }

    /// <summary>Whether a text can be an image's name.</summary>
    internal static bool IsName(string text) => Pattern().Match(text) is { Success: true } match && !match.Groups["generation"].Success;

    /// <inheritdoc/>
    public override string ToString() => $"{Store.TrimEnd('/')}/{Name}{(Generation is { } generation ? $"@{generation}" : "")}";

    [GeneratedRegex("^(?<name>[A-Za-z0-9][A-Za-z0-9._-]{0,127})(@(?<generation>[0-9]{1,19}))?\\z", RegexOptions.ExplicitCapture | RegexOptions.CultureInvariant, matchTimeoutMilliseconds: 1000)]
    private static partial Regex Pattern();
}
