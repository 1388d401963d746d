using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.Fuzz.Targets;

/// <summary>
/// The stream of hand-overs. The first byte says how long the pieces are in which it is sent, the second which descriptors come with
/// the first piece and with which pieces later. However it is cut, the same must come of it.
/// </summary>
internal static class HandoverTarget
{
    private const int MaxHandovers = 1000;

    private static readonly Lazy<SafeDescriptor> s_userfaultfd = new(static () => Userfaultfd.Create(0));
    private static readonly Lazy<SafeDescriptor> s_eventfd = new(EventFd.Create);
    private static readonly Lazy<SafeDescriptor> s_memfd = new(static () => Memfd.CreateSealed("fuzz", 1 << 30, 0));

    public static string? Missing() => Userfaultfd.TryProbe(out _) is var error and not 0 ? $"this user may not create a userfaultfd ({Errno.Name(error)})" : null;

    public static void Run(byte[] input)
    {
        if (input.Length < 2) return;
        var descriptors = (input[1] & 7) switch
        {
            0 => [],
            1 => [s_eventfd.Value],
            2 => [s_userfaultfd.Value, s_userfaultfd.Value],
            3 => [s_userfaultfd.Value, s_eventfd.Value, s_eventfd.Value],
            5 => [s_userfaultfd.Value, s_memfd.Value],
            6 => [s_userfaultfd.Value, s_eventfd.Value],
            _ => new[] { s_userfaultfd.Value },
        };
        var piece = 1 + (input[0] & 63);
        var stream = input.AsMemory(2);
        JsonCoverage.Note(stream.Span);
        _ = (s_userfaultfd.Value, s_eventfd.Value, s_memfd.Value);
        var (whole, cut) = ("", "");
        Check.ClosesEverything(() => whole = Receive(stream, Math.Max(1, stream.Length), descriptors));
        // A thousand pieces are enough to cut it everywhere that matters.
        Check.ClosesEverything(() => cut = Receive(stream, Math.Max(piece, stream.Length / 1000), descriptors));
        Check.Same(whole, cut, "what came of the stream when it was cut");
    }

    /// <summary>What comes of a stream: the lists, then the error or the end.</summary>
    private static string Receive(ReadOnlyMemory<byte> stream, int piece, SafeDescriptor[] descriptors)
    {
        var (near, far) = UnixSocket.CreatePair(nonBlocking: true, UnixSocket.SOCK_STREAM);
        using var socket = near;
        using var peer = far;
        using var receiver = new UffdHandoverReceiver(socket);
        var result = new System.Text.StringBuilder();
        try
        {
            for (var at = 0; at < stream.Length; at += piece)
            {
                var bytes = stream.Slice(at, Math.Min(piece, stream.Length - at)).Span;
                Check.Same(bytes.Length, (int)UnixSocket.TrySend(peer, bytes, at == 0 ? descriptors.Select(static descriptor => descriptor.Number).ToArray() : []), "the bytes that were sent");
                while (Take(receiver, result, out var ended) || ended) Check.True(!ended, "the stream ended before its end");
            }

            UnixSocket.Shutdown(peer);
            for (var i = 0; i < MaxHandovers; i++)
            {
                if (!Take(receiver, result, out var ended) && ended) return result.Append("end").ToString();
            }

            throw new FindingException("the stream does not end");
        }
        catch (GuestMemoryException exception) when (exception.Error is GuestMemoryError.HandoverBadJson or GuestMemoryError.HandoverTooLarge or GuestMemoryError.HandoverNoDescriptor
            or GuestMemoryError.HandoverTooManyDescriptors or GuestMemoryError.HandoverNotUserfaultfd or GuestMemoryError.HandoverNotMemfd or GuestMemoryError.InvalidMapping or GuestMemoryError.PeerClosed)
        {
            Check.Refused(exception);
            return result.Append(exception.Error).ToString();
        }
    }

    private static bool Take(UffdHandoverReceiver receiver, System.Text.StringBuilder result, out bool ended)
    {
        if (receiver.Receive(out ended) is not { } handover) return false;
        using var userfaultfd = handover.Userfaultfd;
        using var memory = handover.Memory;
        Check.True(Userfaultfd.IsUserfaultfd(userfaultfd.Number), "what was handed over is no userfaultfd");
        result.Append(string.Join(' ', handover.Mappings)).Append('\n');
        return true;
    }
}
