using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>Whether another thread has got past what it was doing: one that sleeps in a call has, and one that has run for a while.</summary>
public sealed class ThreadProgressTests : IDisposable
{
    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void AThreadThatSleepsInACallHasPassed()
    {
        using var end = new ManualResetEventSlim();
        using var thread = new Other(end.Wait);
        Pass(thread);
        end.Set();
    }

    [Fact]
    public void AThreadThatRunsHasPassed()
    {
        var over = false;
        using var thread = new Other(() =>
        {
            while (!Volatile.Read(ref over)) Thread.SpinWait(100);
        });
        Pass(thread);
        Volatile.Write(ref over, true);
    }

    [Fact]
    public void AThreadThatEndsHasPassed()
    {
        var thread = new Other(static () => { });
        thread.Dispose();
        Pass(thread);
    }

    /// <summary>The kernel waits for the page, without interruption and maybe for ever; no access of this process's code does.</summary>
    [UffdFact]
    public void AThreadThatWaitsForAPageInACallHasPassed()
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(0x1000).Build(), new GuestAddress(0));
        using var listener = UnixListener.Open(_folder["h.sock"], null, force: false);
        UffdRegistration.Connect(_folder["h.sock"], GuestMemoryMmap.FromRegions([region]));
        using var thread = new Other(() => Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(() => region.ReadObject<ulong>(default))));
        Pass(thread);
        region.Dispose();
    }

    [Fact]
    public void AllOthersPass()
    {
        var over = false;
        using var end = new ManualResetEventSlim();
        void Run()
        {
            while (!Volatile.Read(ref over)) Thread.SpinWait(100);
        }

        using var first = new Other(Run);
        using var second = new Other(Run);
        using var third = new Other(end.Wait);
        ThreadProgress.WaitForOthers(CancellationToken.None);
        Assert.Throws<OperationCanceledException>(() => ThreadProgress.WaitForOthers(new CancellationToken(canceled: true)));
        Volatile.Write(ref over, true);
        end.Set();
    }

    private static void Pass(Other thread)
    {
        var progress = ThreadProgress.Of(thread.Id);
        Host.Until(progress.HasPassed);
        Assert.True(progress.HasPassed());
    }

    /// <summary>A thread with its number; disposal waits for its end.</summary>
    private sealed class Other : IDisposable
    {
        private readonly Thread _thread;
        private readonly ManualResetEventSlim _started = new();

        public Other(Action run)
        {
            _thread = new Thread(() =>
            {
                Id = int.Parse(Path.GetFileName(new FileInfo("/proc/thread-self").LinkTarget!), CultureInfo.InvariantCulture);
                _started.Set();
                run();
            });
            _thread.Start();
            _started.Wait();
        }

        public int Id { get; private set; }

        public void Dispose()
        {
            _thread.Join();
            _started.Dispose();
        }
    }
}
