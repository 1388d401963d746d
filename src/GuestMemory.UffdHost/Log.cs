using System.Globalization;
using System.Text;
using GuestMemory.Core.Interop;

namespace GuestMemory.UffdHost;

/// <summary>What an operator wants to read afterwards, a line each, on standard error: the log file, or the journal.</summary>
internal static class Log
{
    private const int StandardError = 2;
    private const int MaxLength = 1 << 20;
    private static int s_length;
    private static string? s_last;

    public static unsafe void Write(string text)
    {
        // The same again and again, or more than anybody reads, is no news.
        if (text == s_last || s_length > MaxLength) return;
        s_last = text;
        s_length += text.Length;
        // Not by the console, which looks for a terminal first: a worker opens no file. A disk that is full is no reason to leave the VMs.
        var line = Encoding.UTF8.GetBytes(string.Create(CultureInfo.InvariantCulture, $"{DateTime.UtcNow:yyyy-MM-dd'T'HH:mm:ss.fff'Z'} {Environment.ProcessId} {text}\n"));
        fixed (byte* bytes = line) _ = Descriptor.TryWrite(StandardError, bytes, (nuint)line.Length);
    }
}
