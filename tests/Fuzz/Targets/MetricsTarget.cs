using System.Globalization;
using System.Net.Sockets;
using System.Text;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.Fuzz.Targets;

/// <summary>A request to the metrics endpoint: whatever it says, the answer is none, or one whole answer.</summary>
internal static class MetricsTarget
{
    private const string Figures = "# EOF\n";

    public static void Run(byte[] input) => Check.ClosesEverything(() =>
    {
        var (near, far) = UnixSocket.CreatePair(nonBlocking: false, UnixSocket.SOCK_STREAM);
        using var peer = Take(far);
        using (var client = Take(near))
        {
            Check.Same(input.Length, peer.Send(input), "the bytes that were sent");
            peer.Shutdown(SocketShutdown.Send);
            MetricsEndpoint.Answer(client, "text/plain", static () => Figures);
        }

        var answer = new byte[4096];
        var length = 0;
        for (int received; (received = peer.Receive(answer, length, answer.Length - length, SocketFlags.None)) > 0; length += received)
        {
        }

        if (length > 0) CheckAnswer(Encoding.ASCII.GetString(answer, 0, length), input);
    });

    private static Socket Take(SafeDescriptor descriptor)
    {
        var socket = new Socket(new SafeSocketHandle(descriptor.Number, ownsHandle: true));
        descriptor.SetHandleAsInvalid();
        return socket;
    }

    private static void CheckAnswer(string answer, ReadOnlySpan<byte> request)
    {
        Check.True(answer.StartsWith("HTTP/1.1 200 OK\r\n", StringComparison.Ordinal) || answer.StartsWith("HTTP/1.1 404 ", StringComparison.Ordinal) || answer.StartsWith("HTTP/1.1 405 ", StringComparison.Ordinal), $"an answer without a status: {answer}");
        Check.Same(answer.StartsWith("HTTP/1.1 200", StringComparison.Ordinal), answer.EndsWith(Figures, StringComparison.Ordinal), "whether the figures are told");
        var head = answer.IndexOf("\r\n\r\n", StringComparison.Ordinal);
        Check.True(head > 0 && answer.Contains($"\r\nContent-Length: {(answer.Length - head - 4).ToString(CultureInfo.InvariantCulture)}\r\n", StringComparison.Ordinal), "the length of the answer is wrong");
        Check.True(request.IndexOf("\r\n\r\n"u8) >= 0, "half a request was answered");
    }
}
