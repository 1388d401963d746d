using System.IO.Pipes;
using System.Net;
using System.Net.Sockets;
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Tests;

/// <summary>vm-memory.md section 9: memory from and to files, pipes, sockets and devices, on every kind of memory.</summary>
public sealed class DescriptorStreamTests : IDisposable
{
    private readonly TestMemory _memory = new();
    private readonly List<IDisposable> _open = [];

    public void Dispose()
    {
        foreach (var each in _open) each.Dispose();
        _memory.Dispose();
    }

    /// <summary>More than a pipe or socket holds, over regions that touch: every transfer is short many times.</summary>
    [Theory]
    [BackingData("file")]
    [BackingData("pipe")]
    [BackingData("tcp")]
    [BackingData("unix")]
    public void V9_AllThatGoesInComesOut(string backing, string kind)
    {
        (ulong, ulong)[] layout = [(0x1000, 0x3000), (0x4000, 0x100000), (0x104000, 0x1000)];
        var (from, to) = (_memory.Space(backing, layout), _memory.Space(backing, layout));
        var bytes = new byte[0x104000 - 700];
        new Random(3).NextBytes(bytes);
        from.WriteExact(new GuestAddress(0x1000 + 300), bytes);
        var (reader, writer, finish) = Open(kind);
        void Write()
        {
            var sink = new DescriptorStream(writer);
            from.WriteAllVolatileTo(new GuestAddress(0x1000 + 300), ref sink, (ulong)bytes.Length);
            finish();
        }

        void Read()
        {
            var source = new DescriptorStream(reader);
            to.ReadExactVolatileFrom(new GuestAddress(0x1000 + 300), ref source, (ulong)bytes.Length);
            Assert.Equal(0UL, to.ReadVolatileFrom(new GuestAddress(0x1000), ref source, 1));
        }

        if (kind == "file")
        {
            Write();
            Read();
        }
        else
        {
            Stress.RunAll(Write, Read);
        }

        var back = new byte[bytes.Length];
        to.ReadExact(new GuestAddress(0x1000 + 300), back);
        Assert.True(bytes.AsSpan().SequenceEqual(back));
    }

    /// <summary>Short reads before the last region are gone on with, so that nothing lies behind a gap.</summary>
    [Theory]
    [BackingData("pipe")]
    [BackingData("unix")]
    public void V9_ShortReadsLeaveNoGap(string backing, string kind)
    {
        var memory = _memory.Space(backing, (0, 0x1000), (0x1000, 0x1000), (0x2000, 0x1000));
        var (reader, writer, finish) = Open(kind);
        var bytes = new byte[0x2800];
        new Random(4).NextBytes(bytes);
        ulong came = 0;
        Stress.RunAll(
            () =>
            {
                using var file = new FileStream(new SafeFileHandle(writer.DangerousGetHandle(), ownsHandle: false), FileAccess.Write, 0);
                foreach (var piece in bytes.Chunk(700))
                {
                    file.Write(piece);
                    Thread.Yield();
                }

                finish();
            },
            () =>
            {
                var source = new DescriptorStream(reader);
                came = memory.ReadVolatileFrom(new GuestAddress(0), ref source, 0x3000);
                Assert.InRange(came, 0x2001UL, 0x2800UL);
                memory.ReadExactVolatileFrom(new GuestAddress(came), ref source, 0x2800 - came);
            });
        var back = new byte[0x2800];
        memory.ReadExact(new GuestAddress(0), back);
        Assert.True(bytes.AsSpan().SequenceEqual(back));
    }

    [Theory]
    [BackingData]
    public void V9_ZeroFillsRegionsToTheLastByte(string backing)
    {
        var memory = _memory.Space(backing, (0, 0x1000), (0x1000, 0x2000));
        memory.WriteExact(new GuestAddress(0), [.. Enumerable.Repeat((byte)7, 0x3000)]);
        using var file = File.OpenHandle("/dev/zero");
        var zero = new DescriptorStream(file);
        Assert.Equal(0x2ffeUL, memory.ReadVolatileFrom(new GuestAddress(1), ref zero, 0x2ffe));
        var bytes = new byte[0x3000];
        memory.ReadExact(new GuestAddress(0), bytes);
        Assert.Equal((7, 7, -1), (bytes[0], bytes[^1], bytes.AsSpan(1, 0x2ffe).IndexOfAnyExcept((byte)0)));
        // A range that runs into a hole is filled that far.
        Assert.Equal(0x1000UL, memory.ReadVolatileFrom(new GuestAddress(0x2000), ref zero, 0x5000));
        Assert.Equal((0x5000UL, 0x1000UL), Assert.Throws<PartialBufferException>(() => memory.ReadExactVolatileFrom(new GuestAddress(0x2000), ref zero, 0x5000)) is var partial
            ? (partial.Expected, partial.Completed) : default);
    }

    /// <summary>What read(2) and write(2) refuse; a read that failed may have left something, so that all of the slice is marked.</summary>
    [Theory]
    [BackingData]
    public void V9_Failures(string backing)
    {
        var region = _memory.Region(backing, 0, 0x4000);
        var slice = region.GetSlice(new MemoryRegionAddress(0x1000), 0x2000);
        var path = _memory.NewFile(10);
        using var writeOnly = File.OpenHandle(path, FileMode.Open, FileAccess.Write);
        var notToRead = new DescriptorStream(writeOnly);
        var failure = Assert.Throws<SyscallException>(() => slice.ReadVolatileFrom(0, ref notToRead, 0x2000));
        Assert.Equal(("read", "EBADF"), (failure.Function, failure.ErrnoName));
        Assert.Equal([new AddressRange(0x1000, 0x2000, 2)], region.GetDirtyBitmap(clear: true).GetRanges());
        Assert.Throws<SyscallException>(() => slice.ReadExactVolatileFrom(0x800, ref notToRead, 0x100));
        Assert.Equal([new AddressRange(0x1000, 0x1000, 1)], region.GetDirtyBitmap(clear: true).GetRanges());

        using var full = File.OpenHandle("/dev/full", FileMode.Open, FileAccess.Write);
        var sink = new DescriptorStream(full);
        failure = Assert.Throws<SyscallException>(() => slice.WriteAllVolatileTo(0, ref sink, 8));
        Assert.Equal(("write", "ENOSPC"), (failure.Function, failure.ErrnoName));
        var (reader, writer, _) = Open("pipe");
        reader.Dispose();
        sink = new DescriptorStream(writer);
        failure = Assert.Throws<SyscallException>(() => slice.WriteVolatileTo(0, ref sink, 8));
        Assert.Equal(("write", "EPIPE"), (failure.Function, failure.ErrnoName));
        Assert.Throws<ObjectDisposedException>(() => new DescriptorStream(reader).ReadVolatile(slice));
        Assert.Empty(region.GetDirtyBitmap().GetRanges());
    }

    /// <summary>Memory that cannot be had is an error on the way out and on the way in, and no signal.</summary>
    [Fact]
    public void V9_PagesThatAreGone()
    {
        var region = (GuestRegionMmap)_memory.Region("file", 0, 0x4000);
        using (var file = File.OpenHandle(region.BackingPath!, FileMode.Open, FileAccess.Write)) RandomAccess.SetLength(file, 0x1000);
        using var target = File.OpenHandle(_memory.NewFile(0), FileMode.Open, FileAccess.Write);
        using var source = File.OpenHandle("/dev/zero");
        var (sink, zero) = (new DescriptorStream(target), new DescriptorStream(source));
        var slice = region.AsVolatileSlice();
        Assert.Equal(GuestMemoryError.PageNotAccessible, Failure.Of(() => slice.WriteAllVolatileTo(0, ref sink, 0x4000)));
        Assert.Equal(GuestMemoryError.PageNotAccessible, Failure.Of(() => slice.ReadExactVolatileFrom(0x800, ref zero, 0x4000 - 0x800)));
        Assert.Equal(0x800UL, slice.ReadVolatileFrom(0x800, ref zero, 0x800));
    }

    [Fact]
    public void V9_StandardOutput()
    {
        var slice = _memory.Slice("anonymous", (byte)'\n');
        using var standard = new SafeFileHandle(1, ownsHandle: false);
        var sink = new DescriptorStream(standard);
        slice.WriteAllVolatileTo(0, ref sink, 1);
    }

    /// <summary>Two ends, and what tells the reader that nothing more comes; a file's are two descriptors of their own.</summary>
    private (SafeHandle Reader, SafeHandle Writer, Action Finish) Open(string kind)
    {
        switch (kind)
        {
            case "file":
                var path = _memory.NewFile(0);
                return (Keep(File.OpenHandle(path)), Keep(File.OpenHandle(path, FileMode.Open, FileAccess.Write, FileShare.ReadWrite)), () => { });
            case "pipe":
                var pipe = Keep(new AnonymousPipeServerStream(PipeDirection.In));
                return (pipe.SafePipeHandle, pipe.ClientSafePipeHandle, pipe.ClientSafePipeHandle.Dispose);
            default:
                var family = kind == "tcp" ? AddressFamily.InterNetwork : AddressFamily.Unix;
                EndPoint point = kind == "tcp" ? new IPEndPoint(IPAddress.Loopback, 0) : new UnixDomainSocketEndPoint(_memory.Folder["s"]);
                using (var listener = new Socket(family, SocketType.Stream, ProtocolType.Unspecified))
                {
                    listener.Bind(point);
                    listener.Listen();
                    var writer = Keep(new Socket(family, SocketType.Stream, ProtocolType.Unspecified));
                    writer.Connect(listener.LocalEndPoint!);
                    return (Keep(listener.Accept()).SafeHandle, writer.SafeHandle, () => writer.Shutdown(SocketShutdown.Send));
                }
        }
    }

    private T Keep<T>(T each)
        where T : IDisposable
    {
        _open.Add(each);
        return each;
    }
}
