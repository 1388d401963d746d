using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json.Serialization.Metadata;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.VmControl;

namespace GuestMemory.Fuzz.Targets;

/// <summary>
/// What comes through a tube. The first byte says which type is expected, the second how many descriptors come along. A session is a
/// request and the packets of file mappings that follow it, a line each.
/// </summary>
internal static class TubeTarget
{
    private const byte Session = (byte)'s';

    private static readonly Lazy<SafeDescriptor> s_eventfd = new(EventFd.Create);

    public static void Run(byte[] input)
    {
        if (input.Length < 3) return;
        var json = input.AsMemory(2);
        var count = input[1] & 7;
        _ = s_eventfd.Value;
        JsonCoverage.Note(json.Span);
        Check.ClosesEverything(() =>
        {
            switch (input[0])
            {
                case Session:
                    ReceiveSession(json, count);
                    break;
                case (byte)'0':
                    Receive(VmControlJson.Default.VmMemoryRequest, json, count);
                    break;
                case (byte)'1':
                    Receive(VmControlJson.Default.VmMemoryFileMappingArray, json, count);
                    break;
                case (byte)'2':
                    Receive(VmControlJson.Default.VmMemoryResponse, json, count);
                    break;
                case (byte)'3':
                    Receive(VmControlJson.Default.VirtioIommuRequest, json, count);
                    break;
                case (byte)'4':
                    Receive(VmControlJson.Default.VirtioIommuResponse, json, count);
                    break;
                case (byte)'5':
                    Receive(VmControlJson.Default.VmMemoryMappingRequest, json, count);
                    break;
                case (byte)'6':
                    Receive(VmControlJson.Default.FsMappingRequest, json, count);
                    break;
                case (byte)'7':
                    Receive(VmControlJson.Default.VmResponse, json, count);
                    break;
                case (byte)'8':
                    Receive(VmControlJson.Default.AddressInterval, json, count);
                    break;
                case (byte)'9':
                    Receive(VmControlJson.Default.Tube, json, count);
                    break;
            }
        });
    }

    private static void Receive<T>(JsonTypeInfo<T> type, ReadOnlyMemory<byte> json, int count)
    {
        var (first, second) = Tube.Pair();
        using var near = first;
        using var far = second;
        Send(far, json, count);
        if (!Check.TryParse(() => near.Receive(type), out var value, GuestMemoryError.BadJson)) return;
        var descriptors = new List<SafeHandle>();
        try
        {
            var written = DescriptorJson.Serialize(value, type, descriptors);
            Check.True(descriptors.Count <= count && descriptors.Distinct().Count() == descriptors.Count, "a descriptor came twice, or out of nothing");
            var again = new List<SafeHandle>();
            Check.SameItems<byte>(written, DescriptorJson.Serialize(DescriptorJson.Deserialize(written, type, descriptors), type, again), "the JSON");
            Check.True(descriptors.SequenceEqual(again), "the descriptors changed");
            Check.True(value is not VmMemoryResponse.Err error || error.ToException().Message == error.Chain, "an error says something else as an exception");
        }
        finally
        {
            foreach (var descriptor in descriptors) descriptor.Dispose();
        }
    }

    private static void ReceiveSession(ReadOnlyMemory<byte> packets, int count)
    {
        var (first, second) = Tube.Pair();
        using var near = first;
        using (var far = second)
        {
            foreach (var range in MemoryExtensions.Split(packets.Span, (byte)'\n')) Send(far, packets[range], count);
        }

        if (!Check.TryParse(() => VmMemoryExchange.Receive(near, TimeSpan.FromSeconds(60)), out var exchange, GuestMemoryError.BadJson, GuestMemoryError.Disconnected)) return;
        using (exchange)
        {
            exchange.Files?.ReceiveAll(CancellationToken.None);
            try
            {
                if (exchange.Files?.Received() is not { } mappings) return;
                Check.Same(((VmMemoryRequest.MmapAndRegisterMemory)exchange.Request).FileMappingCount, (ulong)mappings.Count, "the number of file mappings");
                Check.True(mappings.All(static mapping => !mapping.File.IsClosed), "a file mapping's file is closed");
            }
            catch (RequestFailure failure)
            {
                Check.True(RequestFailure.Chain(failure).Sum(static message => message.Length) <= 8192, "the messages of a failure are too long for an answer");
            }
        }
    }

    private static void Send(Tube tube, ReadOnlyMemory<byte> packet, int count)
    {
        if (packet.IsEmpty) return;
        var numbers = Enumerable.Repeat(s_eventfd.Value.Number, count).ToArray();
        Check.Same(packet.Length, (int)UnixSocket.TrySend(tube.Socket, packet.Span, numbers, wait: false), $"the bytes sent of {Encoding.UTF8.GetString(packet.Span[..Math.Min(packet.Length, 40)])}");
    }
}
