using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <summary>Pages that cannot be read: tried again, and then what was ordered.</summary>
public sealed class SourceErrorTests : IDisposable
{
    private const int Pages = 16;
    private static readonly TimeSpan s_short = TimeSpan.FromMilliseconds(200);
    private readonly TestFolder _folder = new();
    private readonly GuestRegionMmap _region = new(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
    private readonly GuestMemoryMmap _memory;

    public SourceErrorTests() => _memory = GuestMemoryMmap.FromRegions([_region]);

    public void Dispose()
    {
        _region.Dispose();
        _folder.Dispose();
    }

    [UffdTheory]
    [InlineData(UffdStrategy.OnDemand)]
    [InlineData(UffdStrategy.Background)]
    [InlineData(UffdStrategy.Window)]
    public void AnErrorThatPassesIsTriedAgain(UffdStrategy strategy)
    {
        using var source = new FailingSource(failures: 3, badPage: 5);
        using var handler = Start(source, strategy, UffdOnError.Stop, TimeSpan.FromMinutes(5));
        UffdRegistration.Connect(handler.SocketPath, _memory);
        AssertPage(5);
        AssertPage(6);
        Assert.Null(handler.Error);
        Assert.Equal(3, source.Failed);
    }

    /// <summary>A disk that is away for some time, and then is back: no VM has an error, and only the thread that touched that page has waited.</summary>
    [UffdTheory]
    [InlineData(UffdOnError.Poison)]
    [InlineData(UffdOnError.Kill)]
    [InlineData(UffdOnError.Stop)]
    public void APageComesWhenItsSourceIsBackInTime(UffdOnError onError)
    {
        using var source = new FailingSource(int.MaxValue, badPage: 5);
        using var handler = Start(source, UffdStrategy.OnDemand, onError, TimeSpan.FromMinutes(5));
        UffdRegistration.Connect(handler.SocketPath, _memory);
        var waiting = Task.Run(() => AssertPage(5));
        for (var tries = 1; tries <= 9; tries++)
        {
            // Meanwhile the other pages come, those of another VM too.
            Host.Until(() => source.Failed >= tries);
            AssertPage(tries < 5 ? tries : tries + 1);
        }

        using (var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0)))
        {
            var other = GuestMemoryMmap.FromRegions([region]);
            UffdRegistration.Connect(handler.SocketPath, other);
            TestFolder.AssertPages(other, 0, 5);
        }

        Assert.False(waiting.IsCompleted);
        source.Heal();
        Assert.True(waiting.Wait(Host.Patience));
        Assert.Null(handler.Error);
        Assert.Equal((UffdHandlerState.Serving, 0L), (handler.State, handler.GetFigures().PoisonedCount));
    }

    /// <summary>Without any time a source is asked once.</summary>
    [UffdFact]
    public void ASourceIsAskedOnceWhereNoTimeIsGiven()
    {
        using var source = new FailingSource(int.MaxValue, badPage: 5);
        using var handler = Start(source, UffdStrategy.OnDemand, UffdOnError.Poison, TimeSpan.Zero);
        UffdRegistration.Connect(handler.SocketPath, _memory);
        Assert.Throws<GuestMemoryException>(() => AssertPage(5));
        Assert.Equal(1, source.Failed);
    }

    [Theory]
    [InlineData(-1)]
    [InlineData(1e7)]
    public void ATimeThatIsNoneIsRefused(double seconds)
    {
        var error = Assert.Throws<GuestMemoryException>(() => Start(new FailingSource(0, badPage: 5), UffdStrategy.OnDemand, UffdOnError.Poison, TimeSpan.FromSeconds(seconds)));
        Assert.Equal(GuestMemoryError.ValueNotSupported, error.Error);
        Assert.Contains("SourceTimeout", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void TheTimeIsAnArgumentOfTheProcess()
    {
        string[] needed = ["--socket-path", "/s", "--memory-path", "/m"];
        Assert.Equal(TimeSpan.FromSeconds(5), UffdArguments.Parse(needed).SourceTimeout);
        var options = UffdArguments.Parse([.. needed, "--source-timeout", "00:01:30"]);
        Assert.Equal(TimeSpan.FromSeconds(90), options.SourceTimeout);
        Assert.Equal(options.SourceTimeout, UffdArguments.Parse([.. UffdArguments.From(options)]).SourceTimeout);
    }

    [UffdTheory]
    [InlineData(UffdStrategy.OnDemand)]
    [InlineData(UffdStrategy.Background)]
    [InlineData(UffdStrategy.FaultAll)]
    [InlineData(UffdStrategy.Window)]
    public void ThePageAloneIsPoisoned(UffdStrategy strategy)
    {
        using var handler = Start(new FailingSource(int.MaxValue, badPage: 5), strategy, UffdOnError.Poison);
        UffdRegistration.Connect(handler.SocketPath, _memory);
        var error = Assert.Throws<GuestMemoryException>(() => AssertPage(5));
        Assert.Equal(GuestMemoryError.PageNotAccessible, error.Error);
        for (var page = 0; page < Pages; page++)
        {
            if (page != 5) AssertPage(page);
        }

        Host.Until(() => handler.Error is not null);
        Assert.Contains("EIO", handler.Error, StringComparison.Ordinal);
        Assert.Equal(UffdHandlerState.Serving, handler.State);
    }

    [UffdFact]
    public void TheHandlerStopsAndSaysWhy()
    {
        using var handler = Start(new FailingSource(int.MaxValue, badPage: 5), UffdStrategy.OnDemand, UffdOnError.Stop);
        UffdRegistration.Connect(handler.SocketPath, _memory);
        var error = Assert.Throws<GuestMemoryException>(() => _memory.ReadExact(new GuestAddress(5 * 4096), new byte[8].AsMemory(), CancellationToken.None));
        Assert.Equal(GuestMemoryError.HandlerGone, error.Error);
        Assert.True(handler.Wait(Host.Patience));
        Assert.Equal(UffdHandlerState.Failed, handler.State);
        Assert.Contains("cannot be read at offset 0x5000", handler.Error, StringComparison.Ordinal);
    }

    [CompilerFact]
    public void TheVmmIsKilledAndOthersLive()
    {
        _folder.WriteImage("image", 256);
        using var handler = UffdHandler.Start(new UffdHandlerOptions
        {
            SocketPath = _folder["k.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand, OnError = UffdOnError.Kill, SourceTimeout = s_short,
        });
        UffdRegistration.Connect(handler.SocketPath, _memory);
        AssertPage(3);
        Assert.Equal(0, Compiler.Run("truncate", "-s", "65536", _folder["image"]).Code);
        var client = Compiler.Compile(Path.Combine(AppContext.BaseDirectory, "Userfault", "uffd-client.c"), _folder["client"]);
        using var process = Process.Start(new ProcessStartInfo(client, [handler.SocketPath, "1", "--order", "seq"]) { UseShellExecute = false })!;
        Assert.True(process.WaitForExit(Host.Patience));
        Assert.Equal(128 + 9, process.ExitCode);
        // The VMM is dead before its service says why.
        Host.Until(() => handler is { ConnectionCount: 1, Error: not null });
        Assert.Equal((1, UffdHandlerState.Serving), (handler.ConnectionCount, handler.State));
        Assert.Contains("killed", handler.Error, StringComparison.Ordinal);
        AssertPage(4);
    }

    private UffdHandler Start(PageSource source, UffdStrategy strategy, UffdOnError onError, TimeSpan? timeout = null) => UffdHandler.Start(
        new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = "", Strategy = strategy, OnError = onError, WindowSize = 32768, SourceTimeout = timeout ?? s_short }, source);

    private void AssertPage(int number)
    {
        var page = new byte[4096];
        var expected = new byte[4096];
        TestFolder.Fill(expected, number);
        _memory.ReadExact(new GuestAddress((ulong)number * 4096), page);
        Assert.True(expected.AsSpan().SequenceEqual(page), $"page {number}");
    }

    /// <summary>A disk with a bad page, which may get better.</summary>
    private sealed unsafe class FailingSource(int failures, int badPage) : PageSource
    {
        private readonly byte[] _bytes = Bytes();
        private int _left = failures;
        private int _failed;

        /// <summary>How often it has failed.</summary>
        public int Failed => Volatile.Read(ref _failed);

        /// <summary>From now on it does not fail.</summary>
        public void Heal() => Volatile.Write(ref _left, 0);

        public override string Name => "the failing source";

        public override ulong Length => Pages * 4096;

        public override int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run)
        {
            run = default;
            var bad = (ulong)badPage * 4096;
            if (offset == bad && Volatile.Read(ref _left) > 0)
            {
                _ = Interlocked.Decrement(ref _left);
                _ = Interlocked.Increment(ref _failed);
                return Errno.EIO;
            }

            if (offset < bad && bad - offset < length) length = bad - offset;
            run = new PageRunData((byte*)System.Runtime.CompilerServices.Unsafe.AsPointer(ref _bytes[0]) + offset, length);
            return 0;
        }

        public override void Dispose()
        {
        }

        private static byte[] Bytes()
        {
            var bytes = GC.AllocateArray<byte>(Pages * 4096, pinned: true);
            for (var i = 0; i < Pages; i++) TestFolder.Fill(bytes.AsSpan(i * 4096, 4096), i);
            return bytes;
        }
    }
}
