using GuestMemory.Core;
using GuestMemory.Core.Nbd;

namespace GuestMemory.Fuzz.Targets;

/// <summary>What a client of exported memory sends, from its flags on. Whatever that is, the memory stays as it was, and no more is answered than was asked for.</summary>
internal static class NbdTarget
{
    // All that a request can read, with its headers.
    private const long MostOfRequest = (2 << 20) + 4096;

    private static readonly Lazy<GuestMemoryMmap> s_memory = new(static () =>
    {
        var memory = GuestMemoryMmap.FromRanges([(new GuestAddress(0x1000), 0x8000), (new GuestAddress(0x100000), 0x8000)]);
        memory.WriteExact(new GuestAddress(0x1000), Content());
        return memory;
    });

    public static void Run(byte[] input)
    {
        var memory = s_memory.Value;
        using var stream = new ClientStream(input);
        try
        {
            new NbdSession(stream, "vm", new ExportSpace(memory, isPacked: input.Length % 2 != 0), CancellationToken.None).Run();
        }
        catch (Exception exception) when (exception is EndOfStreamException or InvalidDataException)
        {
            Check.True(exception.Message.Length < 4096, "a message that is too long");
        }

        Check.True(stream.Written >= 18, "no greeting");
        Check.True(stream.Written <= 4096 + (input.Length / 16 + 1) * MostOfRequest, $"{input.Length} bytes were answered by {stream.Written}");
        var content = new byte[Content().Length];
        memory.ReadExact(new GuestAddress(0x1000), content);
        Check.SameItems<byte>(Content(), content, "the memory");
    }

    private static byte[] Content() => [.. Enumerable.Range(0, 0x8000).Select(static place => (byte)(place * 31))];

    /// <summary>The end of a connection that the session has: it reads the input, and what it writes is counted.</summary>
    private sealed class ClientStream(byte[] input) : Stream
    {
        private int _place;

        public long Written { get; private set; }

        public override bool CanRead => true;

        public override bool CanSeek => false;

        public override bool CanWrite => true;

        public override long Length => throw new NotSupportedException();

        public override long Position { get => throw new NotSupportedException(); set => throw new NotSupportedException(); }

        public override int Read(byte[] buffer, int offset, int count) => Read(buffer.AsSpan(offset, count));

        public override int Read(Span<byte> buffer)
        {
            // In pieces, as a socket gives them.
            var count = Math.Min(Math.Min(buffer.Length, input.Length - _place), 100);
            input.AsSpan(_place, count).CopyTo(buffer);
            _place += count;
            return count;
        }

        public override void Write(byte[] buffer, int offset, int count) => Written += count;

        public override void Write(ReadOnlySpan<byte> buffer) => Written += buffer.Length;

        public override void Flush()
        {
        }

        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

        public override void SetLength(long value) => throw new NotSupportedException();
    }
}
