using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;
using GuestMemory.UffdHost;

namespace GuestMemory.Fuzz.Targets;

/// <summary>
/// The sockets of the handler's process. The first byte says who reads: the handler (requests), a client (replies), or supervisor and
/// worker (a message of the channel); the second how long the pieces of lines are. However lines are cut, the same must come of them.
/// </summary>
internal static class ControlTarget
{
    private static readonly Lazy<SafeDescriptor> s_eventfd = new(EventFd.Create);

    public static void Run(byte[] input)
    {
        if (input.Length < 3) return;
        _ = s_eventfd.Value;
        var text = input.AsMemory(2);
        JsonCoverage.Note(text.Span);
        var piece = 1 + (input[1] & 63);
        switch (input[0])
        {
            case (byte)'q':
                ReadLines(UffdControlJson.Default.UffdControlRequest, text, piece, static _ => { });
                break;
            case (byte)'r':
                ReadLines(UffdControlJson.Default.UffdControlReply, text, piece, CheckReply);
                break;
            case (byte)'c':
                Check.ClosesEverything(() => ReadMessage(text));
                break;
        }
    }

    /// <summary>What shows figures must be able to.</summary>
    public static void CheckFigures(UffdFigures figures)
    {
        _ = UffdFiguresText.ToOpenMetrics([figures]);
        Check.True(figures.Vms.Count == 0 || figures.IsRestored == figures.Vms.All(static vm => vm.MissingPageCount == 0) || figures.MissingPageCount != 0 || figures.PageCount <= 0, "it is restored, and is not");
        Check.True(!double.IsNaN(figures.PercentPresent), "the percentage is no number");
    }

    private static void CheckReply(UffdControlReply reply)
    {
        if (reply.ErrorId is not null) Check.True(Enum.IsDefined(reply.ToException().Error), $"an error without a name: {reply.ErrorId}");
        if (reply.Handler is not { } handler) return;
        Check.True(Enum.IsDefined(handler.State) && Enum.IsDefined(handler.Strategy), "a state or strategy without a name");
        Check.True(handler.Images.All(static image => image?.Options is not null), "an image without its options");
        if (handler.Figures is not null) CheckFigures(handler.Figures);
    }

    private static void ReadLines<T>(JsonTypeInfo<T> type, ReadOnlyMemory<byte> text, int piece, Action<T> check)
    {
        var (whole, cut) = ("", "");
        Check.ClosesEverything(() => whole = ReadLines(type, text, Math.Max(1, text.Length), check, keepsDescriptor: true));
        Check.ClosesEverything(() => cut = ReadLines(type, text, Math.Max(piece, text.Length / 1000), check, keepsDescriptor: false));
        Check.Same(whole, cut, "what came of the lines when they were cut");
    }

    /// <summary>What comes of lines: each of them written anew, then the error or the end.</summary>
    private static string ReadLines<T>(JsonTypeInfo<T> type, ReadOnlyMemory<byte> text, int piece, Action<T> check, bool keepsDescriptor)
    {
        var (near, far) = UnixSocket.CreatePair(nonBlocking: true, UnixSocket.SOCK_STREAM);
        using var socket = near;
        using var peer = far;
        var lines = new JsonLines(socket, keepsDescriptor);
        var result = new StringBuilder();
        try
        {
            for (var at = 0; at < text.Length; at += piece)
            {
                var bytes = text.Slice(at, Math.Min(piece, text.Length - at)).Span;
                Check.Same(bytes.Length, (int)UnixSocket.TrySend(peer, bytes, at == 0 ? [s_eventfd.Value.Number] : []), "the bytes that were sent");
                while (lines.TryTake(type, out var value)) Take(value);
                Check.True(!lines.IsEnded, "the lines ended before their end");
            }

            UnixSocket.Shutdown(peer);
            while (lines.TryTake(type, out var value)) Take(value);
            Check.True(lines.IsEnded, "the lines do not end");
            return result.Append("end").ToString();
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.ControlFailed)
        {
            Check.Refused(exception);
            return result.Append(exception.Error).ToString();
        }
        finally
        {
            lines.TakeDescriptor()?.Dispose();
        }

        void Take(T value)
        {
            var json = JsonSerializer.SerializeToUtf8Bytes(value, type);
            Check.SameItems<byte>(json, JsonSerializer.SerializeToUtf8Bytes(JsonSerializer.Deserialize(json, type)!, type), "the JSON");
            check(value);
            result.Append(Encoding.UTF8.GetString(json)).Append('\n');
        }
    }

    private static void ReadMessage(ReadOnlyMemory<byte> text)
    {
        var (near, far) = UnixSocket.CreatePair(nonBlocking: true);
        using var channel = new Channel(near);
        using var peer = far;
        Check.Same(text.Length, (int)UnixSocket.TrySend(peer, text.Span, [s_eventfd.Value.Number, s_eventfd.Value.Number]), "the bytes that were sent");
        var descriptors = new List<SafeDescriptor>();
        try
        {
            if (!Check.TryParse(() => channel.TryReceive(descriptors), out var message, GuestMemoryError.ControlFailed)) return;
            Check.True(message is not null, "a message was lost");
            Check.True(Enum.IsDefined(message.Type), "a message of no type");
            var json = JsonSerializer.SerializeToUtf8Bytes(message, HostJson.Default.ChannelMessage);
            Check.SameItems<byte>(json, JsonSerializer.SerializeToUtf8Bytes(JsonSerializer.Deserialize(json, HostJson.Default.ChannelMessage)!, HostJson.Default.ChannelMessage), "the JSON");
            Check.True(message.Options?.LayerPaths.All(static path => path is not null) ?? true, "a layer without a path");
            if (message.Options is { } options) _ = UffdArguments.Parse([.. UffdArguments.From(options)]);
        }
        finally
        {
            foreach (var descriptor in descriptors) descriptor.Dispose();
        }
    }
}
