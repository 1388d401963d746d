using System.Text.Json;
using System.Text.RegularExpressions;

namespace GuestMemory.Core;

/// <summary>What is wrong with JSON, for the sender of it: the types of this library are named without their namespaces.</summary>
internal static partial class JsonErrorText
{
    public static string Of(JsonException exception) => Namespaces().Replace(exception.Message, "");

    [GeneratedRegex(@"\bGuestMemory\.Core\.(\w+[.+])*(?=\w)", RegexOptions.ExplicitCapture, matchTimeoutMilliseconds: 1000)]
    private static partial Regex Namespaces();
}
