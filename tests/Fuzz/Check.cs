using System.Diagnostics.CodeAnalysis;
using GuestMemory.Core;
using GuestMemory.Core.Interop;

namespace GuestMemory.Fuzz;

/// <summary>What holds for every parser.</summary>
internal static class Check
{
    /// <summary>The longest message: it goes into a log line, an answer over a socket, an error record.</summary>
    private const int MaxMessage = 4096;
    private const int MaxShown = 400;
    private const int Tries = 8;

    /// <summary>Parses; false where the bytes are refused by a documented error. Any other exception is a finding.</summary>
    public static bool TryParse<T>(Func<T> parse, [MaybeNullWhen(false)] out T value, params ReadOnlySpan<GuestMemoryError> documented)
    {
        try
        {
            value = parse();
            return true;
        }
        catch (GuestMemoryException exception)
        {
            if (!documented.Contains(exception.Error)) throw;
            Refused(exception);
            value = default;
            return false;
        }
    }

    /// <summary>A refusal must be one that can be shown.</summary>
    public static void Refused(GuestMemoryException exception)
    {
        True(Enum.IsDefined(exception.Error), $"an error without a name: {(int)exception.Error}");
        if (exception.InnerException is System.Text.Json.JsonException json) JsonCoverage.Note(json);
        True(exception.Message.Length <= MaxMessage, $"{exception.Error} has a message of {exception.Message.Length} characters");
    }

    public static void True([DoesNotReturnIf(false)] bool condition, string otherwise)
    {
        if (!condition) throw new FindingException(otherwise);
    }

    public static void Same<T>(T expected, T actual, string what)
    {
        if (!EqualityComparer<T>.Default.Equals(expected, actual)) throw new FindingException($"{what}: {expected} became {actual}");
    }

    public static void SameItems<T>(ReadOnlySpan<T> expected, ReadOnlySpan<T> actual, string what)
    {
        if (!expected.SequenceEqual(actual)) throw new FindingException($"{what} changed: {Show(expected)} became {Show(actual)}");
    }

    /// <summary>Runs something that must close every descriptor that it opens or is given.</summary>
    public static void ClosesEverything(Action action)
    {
        // Other threads of the process open files too: the runtime what it loads, SharpFuzz what it asks about its parent.
        for (var i = 0; i < Tries; i++)
        {
            if (IsClosedAfter(action)) return;
        }

        throw new FindingException("a descriptor stays open");
    }

    private static bool IsClosedAfter(Action action)
    {
        // The kernel gives the lowest number that is free.
        var before = LowestFree();
        action();
        return LowestFree() == before;
    }

    private static int LowestFree()
    {
        using var descriptor = EventFd.Create();
        return descriptor.Number;
    }

    private static string Show<T>(ReadOnlySpan<T> values)
    {
        var first = values[..Math.Min(values.Length, MaxShown)].ToArray();
        return first is byte[] text ? System.Text.Encoding.UTF8.GetString(text) : string.Join(' ', first);
    }
}
