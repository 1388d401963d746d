using System.Globalization;

namespace GuestMemory.UffdHost;

/// <summary>What an operator wants to read afterwards, a line each, on standard error: the log file, or the journal.</summary>
internal static class Log
{
    private const int MaxLength = 1 << 20;
    private static int s_length;
    private static string? s_last;

    public static void Write(string text)
    {
        // The same again and again, or more than anybody reads, is no news.
        if (text == s_last || s_length > MaxLength) return;
        s_last = text;
        s_length += text.Length;
        try
        {
            Console.Error.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{DateTime.UtcNow:yyyy-MM-dd'T'HH:mm:ss.fff'Z'} {Environment.ProcessId} {text}"));
        }
        catch (IOException)
        {
            // A disk that is full is no reason to leave the VMs.
        }
    }
}
