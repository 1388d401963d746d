using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using FailureKind = GuestMemory.Core.GuestMemoryError;

namespace GuestMemory.Core.Tests;

/// <summary>crosvm-vm-control.md 2 and 11.3.</summary>
public sealed class TubeTests : IDisposable
{
    private static readonly JsonSerializerOptions s_options = new()
    {
        TypeInfoResolver = new DefaultJsonTypeInfoResolver(),
        Converters = { new DescriptorConverter() },
        IncludeFields = true,
    };

    private readonly Tube _near;
    private readonly Tube _far;

    public TubeTests() => (_near, _far) = Tube.Pair();

    public void Dispose()
    {
        _near.Dispose();
        _far.Dispose();
    }

    private sealed record Numbered(uint X, SafeHandle B);

    private sealed record Option(SafeHandle? File);

    [Fact]
    public void V11_3_HelloWorld()
    {
        _near.Send("hello world", Type<string>());
        Assert.Equal("hello world", _far.Receive(Type<string>()));
    }

    [Fact]
    public void V11_3_AStructureWithAnEvent()
    {
        using var ours = EventFd.Create();
        _near.Send(new Numbered(100, ours), Type<Numbered>());
        var (x, theirs) = _far.Receive(Type<Numbered>());
        Assert.Equal(100U, x);
        AssertSame(ours, theirs);
    }

    [Fact]
    public void V11_3_ABareEvent()
    {
        using var ours = EventFd.Create();
        _near.Send<SafeHandle>(ours, Type<SafeHandle>());
        AssertSame(ours, _far.Receive(Type<SafeHandle>()));
    }

    [Fact]
    public void V11_3_TwoProducers()
    {
        using var second = _near.Clone();
        var threads = new[] { (_near, 801279273U), (second, 345234861U) }.Select(producer => new Thread(() =>
        {
            for (var i = 0; i < 100; i++) producer.Item1.Send(producer.Item2, Type<uint>());
        })).ToArray();
        foreach (var thread in threads) thread.Start();
        var counts = Enumerable.Range(0, 200).Select(_ => _far.Receive(Type<uint>())).CountBy(static id => id).ToDictionary();
        foreach (var thread in threads) thread.Join();
        Assert.Equal([KeyValuePair.Create(345234861U, 100), KeyValuePair.Create(801279273U, 100)], counts.OrderBy(static pair => pair.Key));
    }

    [Fact]
    public void V11_3_AMapOfEvents()
    {
        var ours = Enumerable.Range(0, 5).ToDictionary(static i => $"event{i}", static _ => (SafeHandle)EventFd.Create(), StringComparer.Ordinal);
        _near.Send(ours, Type<Dictionary<string, SafeHandle>>());
        var theirs = _far.Receive(Type<Dictionary<string, SafeHandle>>());
        Assert.Equal(ours.Keys, theirs.Keys);
        foreach (var (name, file) in ours)
        {
            AssertSame(file, theirs[name]);
            file.Dispose();
        }
    }

    [Fact]
    public void V11_3_ATubeInATube()
    {
        var (inner, other) = Tube.Pair();
        using (inner) _near.Send(inner, Type<Tube>());
        using var received = _far.Receive(Type<Tube>());
        using (other)
        {
            received.Send("hi", Type<string>());
            Assert.Equal("hi", other.Receive(Type<string>()));
        }
    }

    [Fact]
    public void ATubeHasTheFormOfUpstream()
    {
        var list = new List<SafeHandle>();
        Assert.Equal("""{"socket":{"socket":0}}""", Encoding.UTF8.GetString(DescriptorJson.Serialize(_near, Type<Tube>(), list)));
        foreach (var bad in new[] { "1", "{}", """{"socket":0}""", """{"socket":{"sock":0}}""", """{"socket":{"socket":0,"x":1}}""", """{"socket":{"socket":0},"x":1}""", """{"socket":{"socket":7}}""" })
            Assert.Equal(FailureKind.BadJson, Kind(() => DescriptorJson.Deserialize(Encoding.UTF8.GetBytes(bad), Type<Tube>(), list)));
    }

    [Fact]
    public void V11_3_AnOptionOfAFile()
    {
        _near.Send(new Option(null), Type<Option>());
        Assert.Null(_far.Receive(Type<Option>()).File);
        using var ours = EventFd.Create();
        _near.Send(new Option(ours), Type<Option>());
        AssertSame(ours, _far.Receive(Type<Option>()).File!);
    }

    [Fact]
    public void V11_3_AMapOfFiles()
    {
        using var folder = new TestFolder();
        var ours = new Dictionary<string, SafeHandle>(StringComparer.Ordinal);
        foreach (var name in new[] { "a", "b", "c" })
        {
            File.WriteAllText(folder[name], $"content {name}");
            ours[name] = File.OpenHandle(folder[name]);
        }

        _near.Send(ours, Type<Dictionary<string, SafeHandle>>());
        foreach (var file in ours.Values) file.Dispose();
        foreach (var (name, file) in _far.Receive(Type<Dictionary<string, SafeHandle>>()))
        {
            using (file)
            {
                var number = file.DangerousGetHandle();
                Assert.Equal($"content {name}", File.ReadAllText($"/proc/self/fd/{number}"));
                Assert.True(IsCloseOnExec(number));
            }
        }
    }

    [Theory]
    [InlineData(32, 32, true)]
    [InlineData(33, 32, false)]
    [InlineData(253, 253, true)]
    [InlineData(254, 253, false)]
    [InlineData(1, 254, false)]
    public void DescriptorsHaveALimitWhereTheyAreSent(int count, int limit, bool works)
    {
        var events = Events(count);
        if (works)
        {
            _near.Send(events, Type<SafeHandle[]>(), limit);
            var received = _far.Receive(Type<SafeHandle[]>(), limit);
            Assert.Equal(count, received.Length);
            foreach (var file in received) file.Dispose();
        }
        else
        {
            Assert.Equal(FailureKind.SendTooManyFds, Kind(() => _near.Send(events, Type<SafeHandle[]>(), limit)));
            _far.SetReceiveTimeout(TimeSpan.FromMilliseconds(20));
            Assert.Equal(FailureKind.TubeTimeout, Kind(() => _far.Receive(Type<SafeHandle[]>(), 253)));
        }

        foreach (var file in events) file.Dispose();
    }

    [Theory]
    [InlineData(33, 32)]
    [InlineData(2, 1)]
    [InlineData(1, 0)]
    [InlineData(253, 252)]
    public void DescriptorsHaveALimitWhereTheyAreReceived(int count, int limit)
    {
        var events = Events(count);
        var before = Host.Resources();
        _near.Send(events, Type<SafeHandle[]>(), 253);
        _near.Send("next", Type<string>());
        Assert.Equal(FailureKind.RecvTooManyFds, Kind(() => _far.Receive(Type<SafeHandle[]>(), limit)));
        Assert.Equal("next", _far.Receive(Type<string>()));
        Host.AssertNoneLeft(before);
        Assert.Equal(FailureKind.RecvTooManyFds, Kind(() => _far.Receive(Type<string>(), 254)));
        foreach (var file in events) file.Dispose();
    }

    [Fact]
    public void WhatIsNotUsedIsClosed()
    {
        var events = Events(3);
        var before = Host.Resources();
        Raw("[1,0]", events);
        var received = _far.Receive(Type<SafeHandle[]>());
        AssertSame(events[1], received[0]);
        AssertSame(events[0], received[1]);
        foreach (var bad in new[] { "[0,0]", "[0,5]", "[0,", "\u0000", "{}" })
        {
            Raw(bad, events);
            Assert.Equal(FailureKind.BadJson, Kind(() => _far.Receive(Type<SafeHandle[]>())));
        }

        Host.AssertNoneLeft(before);
        foreach (var file in events) file.Dispose();
    }

    [Fact]
    public void ALargePacketIsDropped()
    {
        Raw(new string(' ', 100_000) + "1", []);
        Assert.Equal(1U, _far.Receive(Type<uint>()));
        Assert.Equal(FailureKind.PacketTooLarge, Kind(() => _near.Send(new string('x', Tube.MaxPacketBytes - 1), Type<string>())));
        _near.Send(2U, Type<uint>());
        Assert.Equal(2U, _far.Receive(Type<uint>()));
    }

    /// <summary>The buffer grows as far as this user may have it grow; beyond, the error says what would help.</summary>
    [Fact]
    public void AMessageThatDoesNotFitTheBufferMakesRoom()
    {
        var largest = int.Parse(File.ReadAllText("/proc/sys/net/core/wmem_max"));
        foreach (var length in (int[])[largest, 2 * largest - 1000, Tube.MaxPacketBytes - 2])
        {
            if (length > Tube.MaxPacketBytes - 2) continue;
            var text = new string('x', length);
            try
            {
                _near.Send(text, Type<string>());
                Assert.Equal(text, _far.Receive(Type<string>()));
            }
            catch (SyscallException exception)
            {
                // Only who administers the network is let past the limit.
                Assert.InRange(length, 2 * largest, int.MaxValue);
                Assert.Equal((FailureKind.PacketTooLarge, Errno.EMSGSIZE), (exception.Error, exception.ErrorCode));
                Assert.Contains("net.core.wmem_max", exception.Message, StringComparison.Ordinal);
            }
        }
    }

    [Fact]
    public void APeerThatIsGoneIsToldFromOneThatIsSlow()
    {
        _near.Send(1U, Type<uint>());
        _near.Dispose();
        Assert.Equal(1U, _far.Receive(Type<uint>()));
        Assert.Equal(FailureKind.Disconnected, Kind(() => _far.Receive(Type<uint>())));
        Assert.Equal(FailureKind.Disconnected, Kind(() => _far.Send(1U, Type<uint>())));
    }

    /// <summary>The kernel reports a peer that left something unread before it gives out what that peer sent.</summary>
    [Fact]
    public void WhatAPeerSentBeforeItLeftArrives()
    {
        var (near, far) = Tube.Pair();
        using (near)
        {
            near.Send(1UL, VmControlJson.Default.UInt64);
            far.Send(2UL, VmControlJson.Default.UInt64);
            far.Dispose();
            Assert.Equal(2UL, near.Receive(VmControlJson.Default.UInt64));
            Assert.Equal(GuestMemoryError.Disconnected, Assert.Throws<GuestMemoryException>(() => near.Receive(VmControlJson.Default.UInt64)).Error);
        }
    }

    [Fact]
    public void TimeLimits()
    {
        foreach (var bad in new[] { TimeSpan.Zero, TimeSpan.FromTicks(1), TimeSpan.FromSeconds(-1) })
        {
            Assert.Equal(Errno.EINVAL, Assert.Throws<SyscallException>(() => _near.SetReceiveTimeout(bad)).ErrorCode);
            Assert.Equal(Errno.EINVAL, Assert.Throws<SyscallException>(() => _near.SetSendTimeout(bad)).ErrorCode);
        }

        _far.SetReceiveTimeout(TimeSpan.FromMilliseconds(20));
        Assert.Equal(FailureKind.TubeTimeout, Kind(() => _far.Receive(Type<uint>())));
        using var token = new CancellationTokenSource();
        Assert.Equal(FailureKind.TubeTimeout, Kind(() => _far.Receive(Type<uint>(), cancellation: token.Token)));
        _far.SetReceiveTimeout(null);
        token.CancelAfter(20);
        Assert.Throws<OperationCanceledException>(() => _far.Receive(Type<uint>(), cancellation: token.Token));
        _near.SetSendTimeout(TimeSpan.FromMilliseconds(20));
        Assert.Equal(FailureKind.TubeTimeout, Kind(() =>
        {
            for (var i = 0; i < 100_000; i++) _near.Send(1U, Type<uint>());
        }));
        _near.SetSendTimeout(null);
    }

    [Fact]
    public void AClosedDescriptorIsNotSent()
    {
        var events = Events(2);
        events[1].Dispose();
        Assert.Throws<ObjectDisposedException>(() => _near.Send(events, Type<SafeHandle[]>()));
        events[0].Dispose();
        Assert.True(events[0].IsClosed);
        _near.Send(1U, Type<uint>());
        Assert.Equal(1U, _far.Receive(Type<uint>()));
    }

    [Fact]
    public void TheTextForADebuggerNamesTheDescriptor()
    {
        var (one, other) = Tube.Pair();
        using (other)
        {
            Assert.Equal($"tube on descriptor {one.Socket.Number}", one.ToString());
            one.Dispose();
            Assert.Equal("closed tube", one.ToString());
        }
    }

    private void Raw(string json, SafeHandle[] files) =>
        Assert.Equal(Encoding.UTF8.GetByteCount(json), UnixSocket.TrySend(_near.Socket, Encoding.UTF8.GetBytes(json), [.. files.Select(static file => (int)file.DangerousGetHandle())]));

    private static JsonTypeInfo<T> Type<T>() => (JsonTypeInfo<T>)s_options.GetTypeInfo(typeof(T));

    private static SafeHandle[] Events(int count) => [.. Enumerable.Range(0, count).Select(static _ => EventFd.Create())];

    /// <summary>Signals one and sees it at the other.</summary>
    private static void AssertSame(SafeHandle ours, SafeHandle theirs)
    {
        using (theirs)
        {
            Assert.NotEqual(ours.DangerousGetHandle(), theirs.DangerousGetHandle());
            EventFd.Signal((SafeDescriptor)ours);
            Assert.Equal(1, Poll.Wait([new PollFd { fd = (int)theirs.DangerousGetHandle(), events = Poll.POLLIN }], 0));
        }
    }

    private static bool IsCloseOnExec(nint number)
    {
        const int O_CLOEXEC = 0x80000;
        var flags = File.ReadLines($"/proc/self/fdinfo/{number}").First(static line => line.StartsWith("flags:", StringComparison.Ordinal));
        return (Convert.ToInt32(flags["flags:".Length..].Trim(), 8) & O_CLOEXEC) != 0;
    }

    private static FailureKind Kind(Action action) => Assert.ThrowsAny<GuestMemoryException>(action).Error;
}
