using System.Text.RegularExpressions;

namespace GuestMemory.Core;

/// <summary>
/// What is wrong with JSON, for the sender of it: the types of this library are named without their namespaces. It is cut where it is
/// long: it may quote what came, and goes into logs and answers.
/// </summary>
internal static partial class JsonErrorText
{
    private const int MaxLength = 1000;

    public static string Of(Exception exception) =>
        Namespaces().Replace(exception.Message.Length <= MaxLength ? exception.Message : $"{exception.Message[..MaxLength]}...", "");

    [GeneratedRegex(@"\bGuestMemory\.Core\.(\w+[.+])*(?=\w)", RegexOptions.ExplicitCapture, matchTimeoutMilliseconds: 1000)]
    private static partial Regex Namespaces();
}
