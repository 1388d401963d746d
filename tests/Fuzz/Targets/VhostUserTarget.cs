using System.Buffers.Binary;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.VhostUser;

namespace GuestMemory.Fuzz.Targets;

/// <summary>
/// A vhost-user front end and its guest: requests, what the guest writes into its memory, and kicks, in any order. A disk serves the virtqueues, in
/// this thread. A step begins with a byte: 255 writes to the memory (address of 2 bytes, length of 1, bytes), 254 has the disk serve, and any other is the
/// number of a request, with its flags, what descriptors come along (two of 4 bits each, <see cref="s_files"/>), the length of its payload and the payload.
/// </summary>
internal static class VhostUserTarget
{
    private const byte WriteStep = 255;
    private const byte ServeStep = 254;
    private const int MaxSteps = 200;
    private const int MaxRequests = 256;
    private const int MemorySize = 0x10000;
    private const int ImageSize = 0x10000;

    private static readonly GuestMemoryError[] s_refusals =
    [
        GuestMemoryError.InvalidMessage, GuestMemoryError.PacketTooLarge, GuestMemoryError.IncorrectFds, GuestMemoryError.Disconnected, GuestMemoryError.InactiveOperation,
        GuestMemoryError.FeatureMismatch, GuestMemoryError.InvalidOperation, GuestMemoryError.InvalidParam, GuestMemoryError.MemoryRegionOverlap, GuestMemoryError.ZeroSize,
        GuestMemoryError.InvalidGuestRegion, GuestMemoryError.FileNotSealed, GuestMemoryError.MappingPastEof, GuestMemoryError.UnalignedOffset, GuestMemoryError.NoMemoryRegion,
        GuestMemoryError.InvalidGuestAddress, GuestMemoryError.InvalidLog, GuestMemoryError.OutOfMemory, GuestMemoryError.UffdRegisterFailed,
    ];

    // The guest's memory, a log or an inflight region, an eventfd, and a file that is none of them.
    private static readonly Lazy<SafeDescriptor[]> s_files = new(static () => [Memfd.CreateSealed("fuzz-memory", MemorySize, 0), Memfd.CreateSealed("fuzz-shared", MemorySize, 0), EventFd.Create(), Memfd.CreateSealed("fuzz-image", ImageSize, 0)]);

    public static void Run(byte[] input)
    {
        _ = s_files.Value;
        Check.ClosesEverything(() => Serve(input));
    }

    private static void Serve(ReadOnlySpan<byte> input)
    {
        using var guest = Descriptor.Duplicate(s_files.Value[0]);
        using var shared = Descriptor.Duplicate(s_files.Value[1]);
        using var image = Descriptor.Duplicate(s_files.Value[3]);
        // What one input leaves is not there for the next.
        foreach (var file in new[] { guest, shared, image }) RandomAccess.Write(file, new byte[MemorySize], 0);
        var (near, far) = UnixSocket.CreatePair(nonBlocking: false, UnixSocket.SOCK_STREAM);
        using var disk = new BlockDevice(image, isReadOnly: false, queueCount: 2, id: "fuzz");
        using var device = new WalkingDisk(disk, image);
        using (near)
        {
            using var connection = new VhostUserConnection(far, device);
            for (var step = 0; step < MaxSteps && !input.IsEmpty; step++)
            {
                var what = input[0];
                input = input[1..];
                // In a post-copy migration a page that is missing, a hole of a file, would be waited for, and nobody provides it.
                if (what == ServeStep && !connection.IsPostcopy) device.Serve(MaxRequests);
                else if (what == ServeStep) continue;
                else if (what == WriteStep) Write(ref input, guest);
                else if (!Request(what, ref input, near, connection)) return;
            }
        }
    }

    private static void Write(ref ReadOnlySpan<byte> input, Microsoft.Win32.SafeHandles.SafeFileHandle guest)
    {
        if (input.Length < 3) return;
        var address = BinaryPrimitives.ReadUInt16LittleEndian(input);
        var bytes = input.Slice(3, Math.Min(Math.Min(input[2], input.Length - 3), MemorySize - address));
        RandomAccess.Write(guest, bytes, address);
        input = input[(3 + bytes.Length)..];
    }

    /// <summary>Sends a request and has it executed; false where the connection has ended.</summary>
    private static bool Request(byte number, ref ReadOnlySpan<byte> input, SafeDescriptor near, VhostUserConnection connection)
    {
        if (input.Length < 3) return false;
        var (flags, files, length) = (input[0], input[1], Math.Min(input[2], input.Length - 3));
        byte[] message = [number, 0, 0, 0, flags, 0, 0, 0, (byte)length, 0, 0, 0, .. input.Slice(3, length)];
        input = input[(3 + length)..];
        int[] descriptors = [.. new[] { files & 15, files >> 4 }.Where(static file => file is > 0 and <= 4).Select(static file => s_files.Value[file - 1].Number)];
        Check.Same(message.Length, (int)UnixSocket.TrySend(near, message, descriptors), "sending");
        var goesOn = Check.TryParse(connection.ProcessRequest, out var there, s_refusals) && there;
        if (connection.LastRefusal is { } refusal) Check.Refused(refusal);
        var received = new List<SafeDescriptor>();
        var replies = new byte[4096];
        while (UnixSocket.TryReceive(near, replies, received, out _) > 0)
        {
        }

        foreach (var descriptor in received) descriptor.Dispose();
        var end = (UInt128)0;
        foreach (var region in connection.Memory.Regions)
        {
            Check.True(region.GuestAddress >= end && region.Size > 0 && region.Size <= MemorySize, "regions overlap, or have more than their file");
            end = (UInt128)region.GuestAddress + region.Size;
        }

        return goesOn;
    }
}
