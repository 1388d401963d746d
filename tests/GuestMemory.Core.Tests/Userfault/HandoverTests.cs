namespace GuestMemory.Core.Tests;

/// <summary>A hand-over while memory is accessed: what began before has ended, and what goes on is guarded.</summary>
public sealed class HandoverTests : IDisposable
{
    private const int Size = 256 << 20;
    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    /// <summary>
    /// The handler never serves a page, so a copy that was under way waits for one when the memory is taken away. If it still touched
    /// the memory itself, the signal would end the process.
    /// </summary>
    [UffdTheory]
    [InlineData("read")]
    [InlineData("write")]
    [InlineData("values")]
    [InlineData("slice")]
    public void ACopyThatIsUnderWayEndsWithAnError(string way)
    {
        using var silent = UnixListener.Open(_folder["h.sock"], null, force: false);
        var buffer = new byte[Size];
        buffer.AsSpan().Fill(0xA5);
        var interrupted = 0;
        for (var round = 0; interrupted < 5; round++)
        {
            Assert.True(round < 100, $"{interrupted} of {round} copies were under way");
            using var region = new GuestRegionMmap(new MmapRegionBuilder(Size).Build(), new GuestAddress(0));
            var slice = region.AsVolatileSlice();
            buffer[0] = 0xA5;
            var other = VolatileSlice.FromArray(buffer);
            var copy = new Thread(() =>
            {
                try
                {
                    if (way == "read") slice.ReadExact(0, buffer);
                    else if (way == "write") slice.WriteExact(0, buffer);
                    else if (way == "values") slice.CopyTo<ulong>(System.Runtime.InteropServices.MemoryMarshal.Cast<byte, ulong>(buffer.AsSpan()));
                    else slice.CopyToVolatileSlice(other);
                }
                catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.RegionDisposed)
                {
                    Interlocked.Increment(ref interrupted);
                }
            });
            copy.Start();
            // Begun: the first byte has come, or gone.
            while (copy.IsAlive && (way == "write" ? slice.ReadObject<byte>(0) == 0 : Volatile.Read(ref buffer[0]) != 0)) Thread.Yield();
            UffdRegistration.Connect(_folder["h.sock"], GuestMemoryMmap.FromRegions([region]));
            region.Dispose();
            copy.Join();
        }
    }

    /// <summary>A copy that may be abandoned is told that its handler is gone, also where it began before there was one.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void ACopyThatIsUnderWayLearnsThatTheHandlerIsGone(bool write)
    {
        var buffer = new byte[Size];
        buffer.AsSpan().Fill(0xA5);
        for (var round = 0; ; round++)
        {
            Assert.True(round < 20, "no copy was under way");
            using var region = new GuestRegionMmap(new MmapRegionBuilder(Size).Build(), new GuestAddress(0));
            var memory = GuestMemoryMmap.FromRegions([region]);
            buffer[0] = 0xA5;
            var failure = default(Exception);
            var copy = new Thread(() => failure = Record.Exception(() =>
            {
                if (write) memory.WriteExact(new GuestAddress(0), buffer.AsMemory(), CancellationToken.None);
                else memory.ReadExact(new GuestAddress(0), buffer.AsMemory(), CancellationToken.None);
            }));
            copy.Start();
            while (copy.IsAlive && (write ? memory.ReadObject<byte>(new GuestAddress(0)) == 0 : Volatile.Read(ref buffer[0]) != 0)) Thread.Yield();
            using (UnixListener.Open(_folder["h.sock"], null, force: false)) UffdRegistration.Connect(_folder["h.sock"], memory);
            Assert.True(copy.Join(TimeSpan.FromMinutes(1)), "the copy waits for a handler that is gone");
            if (failure is null) continue;
            Assert.Equal(GuestMemoryError.HandlerGone, Assert.IsType<GuestMemoryException>(failure).Error);
            return;
        }
    }
}
