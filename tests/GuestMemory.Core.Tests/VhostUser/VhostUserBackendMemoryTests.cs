using Microsoft.Win32.SafeHandles;
using static GuestMemory.Core.Tests.FrontEnd;

namespace GuestMemory.Core.Tests;

/// <summary>The memory that a back end's front end shares: who marks what is written to it, and who holds it.</summary>
public sealed class VhostUserBackendMemoryTests : IDisposable
{
    private const int Sectors = 256;
    private const uint Read = VirtioBlk.VIRTIO_BLK_T_IN;
    private const ulong Data = DiskGuest.Data;

    private readonly TestFolder _folder = new();
    private readonly SafeFileHandle _image;

    public VhostUserBackendMemoryTests()
    {
        File.WriteAllBytes(_folder["disk"], new byte[Sectors * 512]);
        _image = File.OpenHandle(_folder["disk"], FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite);
    }

    public void Dispose()
    {
        _image.Dispose();
        _folder.Dispose();
    }

    /// <summary>
    /// Requests write one page each, while the bitmap of the memory is replaced over and over, and the front end's log, too: the page is in one of
    /// the bitmaps, and in one of the logs.
    /// </summary>
    [Fact]
    public void NoMarkIsLostWhileBitmapsAndLogsAreReplaced()
    {
        const int Pages = 200;
        using var device = new BlockDevice(_image, isReadOnly: false);
        using var backend = Start(device);
        using var front = Connect(backend);
        SafeDescriptor[] logs = [Memfd(0x1000), Memfd(0x1000)];
        front.SetLog(logs[0]);
        front.SetLogging(true);
        var (bitmapLock, logLock) = (new Lock(), new Lock());
        HashSet<ulong> inBitmaps = [], inLogs = [];
        var former = AtomicBitmap.WithLength(Size);
        var (replacedBitmaps, replacedLogs) = (0, 0);
        ReplaceBitmap();
        Stress.Repeat(Stress.Duration(1), () => replacedBitmaps > 100 && replacedLogs > 100, ReplaceBitmap, ReplaceLog, () =>
        {
            lock (bitmapLock) inBitmaps.Clear();
            lock (logLock) inLogs.Clear();
            for (var i = 0; i < Pages; i++) Assert.Equal(0, front.Guest.Do(Read, (ulong)(i % Sectors), (Data + (0x1000UL * (ulong)i), 512, true)));
            ReplaceBitmap();
            ReplaceLog();
            var wanted = Enumerable.Range(0, Pages).Select(static i => Data + (0x1000UL * (ulong)i));
            lock (bitmapLock) Assert.Empty(wanted.Except(inBitmaps));
            lock (logLock) Assert.Empty(wanted.Except(inLogs));
        });
        foreach (var log in logs) log.Dispose();

        void ReplaceBitmap()
        {
            lock (bitmapLock)
            {
                var next = AtomicBitmap.WithLength(Size);
                GuestMemoryRegion.SetTrackers(backend.Memory.Regions, _ => next, keepDirty: false);
                inBitmaps.UnionWith(PagesOf(former.GetAndReset()));
                former = next;
                replacedBitmaps++;
            }
        }

        void ReplaceLog()
        {
            lock (logLock)
            {
                (logs[0], logs[1]) = (logs[1], logs[0]);
                front.SetLog(logs[0]);
                using var taken = MmapLogReg.FromFile(logs[1], 0, 0x1000);
                inLogs.UnionWith(PagesOf(taken.GetAndReset().AsWords()[..(int)(Size / 4096 / 64)].ToArray()));
                replacedLogs++;
            }
        }

        static IEnumerable<ulong> PagesOf(ulong[] words) => Enumerable.Range(0, words.Length * 64).Where(page => (words[page / 64] >> page % 64 & 1) != 0).Select(static page => (ulong)page * 0x1000);
    }

    [Fact]
    public void MemoryOfTheVmIsNotRemovedUnlessItIsForced()
    {
        using var device = new BlockDevice(_image, isReadOnly: false);
        using var backend = Start(device);
        using (var front = Connect(backend))
        {
            var memory = backend.Memory.Regions[0].GetMemory();
            var refused = Assert.Throws<GuestMemoryException>(() => memory.Release(force: false));
            Assert.Equal((GuestMemoryError.RegionInUse, false), (refused.Error, memory.IsDisposed));
            Assert.Contains("the VM of a vhost-user front end", refused.Message, StringComparison.Ordinal);
            Assert.Equal(0, front.Guest.Do(Read, 1, (Data, 512, true)));
            // The front end may take it away.
            front.ShareMemory();
            Assert.True(memory.IsDisposed);
            Assert.Equal(0, front.Guest.Do(Read, 1, (Data, 512, true)));
            backend.Memory.Regions[0].GetMemory().Release(force: true);
            Host.Until(() => front.IsEnded);
            Host.Until(() => backend.Error is not null);
            Assert.Contains("removed", backend.Error, StringComparison.Ordinal);
        }

        using var next = Connect(backend);
        Assert.Equal(0, next.Guest.Do(Read, 1, (Data, 512, true)));
    }

    private VhostUserBackend Start(BlockDevice device) => VhostUserBackend.Start(_folder["s"], device, []);

    private static DiskFrontEnd Connect(VhostUserBackend backend)
    {
        var front = new DiskFrontEnd(backend);
        front.Negotiate();
        front.Start();
        return front;
    }
}
