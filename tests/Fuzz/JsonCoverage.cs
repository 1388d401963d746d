using System.Text.Json;
using SharpFuzz.Common;

namespace GuestMemory.Fuzz;

/// <summary>
/// Tells afl-fuzz how far the JSON reader of .NET comes with an input. That reader is compiled ahead and cannot be instrumented; without
/// this afl-fuzz would not see that an input gets deeper into a document.
/// </summary>
internal static unsafe class JsonCoverage
{
    private const int MapSize = 1 << 16;
    private const int MaxDepth = 16;

    // Some messages quote all that follows in the document: each would be new, and crowd out what the library does.
    private const uint MaxReasons = 256;

    /// <summary>Marks each kind of token that follows another at a depth.</summary>
    public static void Note(ReadOnlySpan<byte> json)
    {
        if (Trace.SharedMem is null) return;
        var reader = new Utf8JsonReader(json, new JsonReaderOptions { AllowMultipleValues = true });
        var last = JsonTokenType.None;
        try
        {
            while (reader.Read())
            {
                Mark(HashCode(Math.Min(reader.CurrentDepth, MaxDepth), (int)last, (int)reader.TokenType));
                last = reader.TokenType;
            }
        }
        catch (JsonException)
        {
            // What is wrong with it the parser says.
        }
    }

    /// <summary>Marks why the reader refused an input: its words, without what it quotes.</summary>
    public static void Note(JsonException exception)
    {
        if (Trace.SharedMem is null) return;
        var hash = 17;
        foreach (var word in exception.Message.Split(' '))
        {
            // What follows is the path to the place.
            if (word.StartsWith('$')) break;
            if (!word.All(char.IsAsciiLetter)) continue;
            foreach (var letter in word) hash = (hash * 31) + letter;
        }

        Mark((uint)hash % MaxReasons);
    }

    private static uint HashCode(int first, int second, int third) => (uint)((((first * 31) + second) * 31 + third) * 0x9E37);

    private static void Mark(uint hash) => Trace.SharedMem[hash % MapSize]++;
}
