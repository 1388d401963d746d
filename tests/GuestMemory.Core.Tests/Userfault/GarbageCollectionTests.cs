using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <summary>
/// Handler and readers in one process while collections are forced all the time: no way of reading may stop the runtime while it
/// waits for a page that the same runtime has to serve.
/// </summary>
public sealed class GarbageCollectionTests : IDisposable
{
    private const int Pages = 128;
    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [UffdFact]
    public void NoWayOfReadingStallsACollection()
    {
        var seconds = int.Parse(Environment.GetEnvironmentVariable("GUESTMEMORY_GC_SECONDS") ?? "60", System.Globalization.CultureInfo.InvariantCulture);
        _folder.WriteImage("image", Pages);
        using var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"] });
        var over = false;
        var collections = 0;
        var collector = new Thread(() =>
        {
            while (!Volatile.Read(ref over))
            {
                GC.Collect(2, GCCollectionMode.Forced, blocking: true, compacting: true);
                collections++;
                // Without a breath between two collections no other thread ever gets to run.
                Thread.Sleep(1);
            }
        });
        collector.Start();
        var clock = Stopwatch.StartNew();
        var rounds = 0;
        while (clock.Elapsed < TimeSpan.FromSeconds(seconds)) Round(handler, rounds++);
        Volatile.Write(ref over, true);
        collector.Join();
        Assert.True(rounds >= 7 && collections > rounds, $"{rounds} rounds, {collections} collections");
        Assert.Null(handler.Error);
    }

    /// <summary>One fresh memory, read in one of the ways there are.</summary>
    private void Round(UffdHandler handler, int way)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).WithDirtyTracking().Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        var all = new byte[Pages * 4096];
        switch (way % 7)
        {
            case 0:
                for (var i = 0; i < Pages; i++) Assert.Equal(8, memory.Read(new GuestAddress((ulong)i * 4096), all.AsSpan(i * 8, 8)));
                break;
            case 1:
                memory.ReadExact(new GuestAddress(0), all);
                break;
            case 2:
                memory.ReadExact(new GuestAddress(0), all.AsMemory(), CancellationToken.None);
                break;
            case 3:
                for (var i = Pages - 1; i >= 0; i--) memory.WriteExact(new GuestAddress((ulong)i * 4096), all.AsSpan(0, 1));
                break;
            case 4:
                memory.WriteExact(new GuestAddress(0), all.AsMemory(), CancellationToken.None);
                break;
            case 5:
                RawImage.WriteFull(memory, _folder["copy"], overwrite: true, digest: true);
                Assert.True(File.ReadAllBytes(_folder["image"]).AsSpan().SequenceEqual(File.ReadAllBytes(_folder["copy"])));
                break;
            default:
                for (var i = 0; i < Pages; i += 2) memory.Write(new GuestAddress((ulong)i * 4096), all.AsSpan(0, 4));
                RawImage.WriteDirty(memory, _folder["diff"], force: true);
                break;
        }
    }
}
