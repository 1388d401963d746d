using Microsoft.Win32.SafeHandles;
using static GuestMemory.Core.Tests.DiskGuest;

namespace GuestMemory.Core.Tests;

/// <summary>The disk: every kind of request, what it refuses, and what it leaves when it is stopped. Once by each way to the file.</summary>
public abstract class BlockDeviceTests : IDisposable
{
    private const int Sectors = 2048;

    private readonly TestFolder _folder = new();
    private readonly SafeDescriptor _kick = EventFd.Create();
    private readonly SafeDescriptor _call = EventFd.Create();
    private GuestMemoryMmap _memory = GuestMemoryMmap.FromRanges([(0, 0x80000), (0x80000, 0x80000)]);

    private DiskGuest Guest => field ??= new DiskGuest(_memory, _kick, _call, HasEventIndex);

    public void Dispose()
    {
        foreach (var region in _memory.Regions) region.Dispose();
        _kick.Dispose();
        _call.Dispose();
        _folder.Dispose();
        GC.SuppressFinalize(this);
    }

    [Fact]
    public void WhatIsWrittenIsReadAgain()
    {
        using var disk = Open();
        var bytes = RandomNumbers(64 << 10);
        _memory.WriteExact(Data, bytes);
        Assert.Equal(0, Guest.Do(VirtioBlk.VIRTIO_BLK_T_OUT, 8, (Data, 4096, false), (Data + 4096, 60 << 10, false)));
        Assert.Equal(1U, Guest.LastWritten);
        Assert.Equal(0, Guest.Do(VirtioBlk.VIRTIO_BLK_T_FLUSH, 0));
        // Over the seam of two regions.
        Assert.Equal(0, Guest.Do(VirtioBlk.VIRTIO_BLK_T_IN, 8, (0x78000, 64 << 10, true)));
        Assert.Equal((64U << 10) + 1, Guest.LastWritten);
        Assert.Equal(bytes, Read(0x78000, bytes.Length));
        Assert.Equal(bytes, File.ReadAllBytes(_folder["disk"]).AsSpan(8 * 512, bytes.Length).ToArray());
    }

    [Fact]
    public void WhatIsOutsideOfTheDiskIsRefused()
    {
        using var disk = Open();
        Assert.Equal(1, Guest.Do(VirtioBlk.VIRTIO_BLK_T_IN, Sectors, (Data, 512, true)));
        Assert.Equal(0U, Guest.LastWritten);
        Assert.Equal(1, Guest.Do(VirtioBlk.VIRTIO_BLK_T_IN, Sectors - 1, (Data, 1024, true)));
        Assert.Equal(1, Guest.Do(VirtioBlk.VIRTIO_BLK_T_OUT, ulong.MaxValue, (Data, 512, false)));
        Assert.Equal(1, Guest.Do(VirtioBlk.VIRTIO_BLK_T_IN, 0, (Data, 511, true)));
        Assert.Equal(0, Guest.Do(VirtioBlk.VIRTIO_BLK_T_IN, Sectors - 1, (Data, 512, true)));
        Assert.Equal(Sectors * 512, new FileInfo(_folder["disk"]).Length);
    }

    [Fact]
    public void AReadOnlyDiskIsNotWritten()
    {
        using var disk = Open(isReadOnly: true);
        var before = File.ReadAllBytes(_folder["disk"]);
        Assert.Equal(1, Guest.Do(VirtioBlk.VIRTIO_BLK_T_OUT, 0, (Data, 512, false)));
        Assert.Equal(2, Guest.DoRanges(VirtioBlk.VIRTIO_BLK_T_DISCARD, (0, 8, 0)));
        Assert.Equal(0, Guest.Do(VirtioBlk.VIRTIO_BLK_T_IN, 0, (Data, 512, true)));
        Assert.Equal(before, File.ReadAllBytes(_folder["disk"]));
    }

    [Fact]
    public void WhatIsDiscardedOrZeroedIsZero()
    {
        using var disk = Open();
        Assert.Equal(0, Guest.DoRanges(VirtioBlk.VIRTIO_BLK_T_WRITE_ZEROES, (16, 8, 1), (24, 0, 0), (32, 8, 0)));
        Assert.Equal(0, Guest.DoRanges(VirtioBlk.VIRTIO_BLK_T_DISCARD, (64, 16, 0)));
        Assert.Equal(0, Guest.DoRanges(VirtioBlk.VIRTIO_BLK_T_DISCARD, (64, 0, 0)));
        CheckZeros();
        Assert.Equal(1, Guest.DoRanges(VirtioBlk.VIRTIO_BLK_T_DISCARD, (Sectors, 1, 0)));
        Assert.Equal(2, Guest.DoRanges(VirtioBlk.VIRTIO_BLK_T_DISCARD, (0, 1, 1)));
        CheckZeros();

        void CheckZeros()
        {
            var bytes = File.ReadAllBytes(_folder["disk"]);
            Assert.Equal(Sectors * 512, bytes.Length);
            for (var sector = 0; sector < Sectors; sector++)
            {
                var isZero = sector is (>= 16 and < 24) or (>= 32 and < 40) or (>= 64 and < 80);
                Assert.Equal(isZero ? (byte)0 : Pattern(sector), bytes[sector * 512]);
                Assert.Equal(isZero ? (byte)0 : Pattern(sector), bytes[(sector * 512) + 511]);
            }
        }
    }

    /// <summary>A file system that cannot zero a range, tmpfs for example: a memfd is on one.</summary>
    [Fact]
    public void WhatCannotBeZeroedAtOnceIsFreedAndAllocated()
    {
        using var memfd = FrontEnd.Memfd(Sectors * 512);
        using var disk = Open(image: Interop.Descriptor.Duplicate(memfd));
        _memory.WriteExact(Data, RandomNumbers(4096));
        Assert.Equal(0, Guest.Do(VirtioBlk.VIRTIO_BLK_T_OUT, 8, (Data, 4096, false)));
        Assert.Equal(0, Guest.DoRanges(VirtioBlk.VIRTIO_BLK_T_WRITE_ZEROES, (8, 4, 0), (16, 8, 0)));
        Assert.Equal(0, Guest.Do(VirtioBlk.VIRTIO_BLK_T_IN, 8, (Data + 0x1000, 4096, true)));
        Assert.Equal([.. new byte[2048], .. Read(Data + 2048, 2048)], Read(Data + 0x1000, 4096));
    }

    [Fact]
    public void ItTellsItsIdAndKnowsNoOtherRequest()
    {
        using var disk = Open();
        Assert.Equal(0, Guest.Do(VirtioBlk.VIRTIO_BLK_T_GET_ID, 0, (Data, 20, true)));
        Assert.Equal("web\0\0", System.Text.Encoding.ASCII.GetString(Read(Data, 5)));
        Assert.Equal(1, Guest.Do(VirtioBlk.VIRTIO_BLK_T_GET_ID, 0, (Data, 19, true)));
        Assert.Equal(2, Guest.Do(99, 0));
    }

    /// <summary>The file was made shorter, or does not take writes: an error for the guest, and the disk goes on.</summary>
    [Fact]
    public void WhatTheFileRefusesIsAnError()
    {
        using var disk = Open(access: FileAccess.Read);
        using (var file = new FileStream(_folder["disk"], FileMode.Open, FileAccess.Write, FileShare.ReadWrite)) file.SetLength(1024);
        Assert.Equal(1, Guest.Do(VirtioBlk.VIRTIO_BLK_T_IN, 1, (Data, 1024, true)));
        Assert.Equal(512U, Guest.LastWritten);
        Assert.Equal(1, Guest.Do(VirtioBlk.VIRTIO_BLK_T_OUT, 0, (Data, 512, false)));
        Assert.Equal(0, Guest.Do(VirtioBlk.VIRTIO_BLK_T_IN, 1, (Data, 512, true)));
    }

    /// <summary>The guest learns of a request when its data is in the memory, and its marks are in the log.</summary>
    [Fact]
    public void DataAndMarksComeBeforeTheGuestIsTold()
    {
        foreach (var region in _memory.Regions) region.Dispose();
        var marks = new List<(ulong Offset, ulong Length, ushort Used, byte First)>();
        using var region0 = new GuestRegionMmap(new MmapRegionBuilder(0x80000).WithTracker(new MarkWatcher((offset, length) =>
        {
            if (offset >= Data) lock (marks) marks.Add((offset, length, Guest.UsedIndex, _memory.ReadObject<byte>(offset)));
        })).Build(), 0);
        _memory = GuestMemoryMmap.FromRegions([region0]);
        using var disk = Open();
        Assert.Equal(0, Guest.Do(VirtioBlk.VIRTIO_BLK_T_IN, 3, (Data, 512, true), (Data + 0x5000, 8192, true)));
        lock (marks) Assert.Equal([(Data, 512UL, 0, Pattern(3)), (Data + 0x5000, 8192UL, 0, Pattern(4))], marks);
    }

    /// <summary>The second request comes while the disk works on the first: the guest may kick, and it is served.</summary>
    [Fact]
    public void OneSlowRequestHoldsUpNoOther()
    {
        HeldDiskIo held = null!;
        using var disk = Open(wrap: io => held = new HeldDiskIo(io, _kick, static operation => operation.Offset == 0));
        Guest.Put(0, VirtioBlk.VIRTIO_BLK_T_IN, 0, (Data, 512, true));
        Guest.Kick();
        try
        {
            Host.Until(() => held.HeldCount == 1 && held.IsWaiting);
            Guest.Put(1, VirtioBlk.VIRTIO_BLK_T_IN, 1, (Data + 512, 512, true));
            Guest.Kick();
            Host.Until(() => Guest.UsedIndex == 1);
            Assert.Equal([1], Guest.Returned);
        }
        finally
        {
            // Where it fails the stop would wait for it.
            held.Release();
        }

        Host.Until(() => Guest.UsedIndex == 2);
        Assert.Equal([1, 0], Guest.Returned);
        Assert.Equal((Pattern(0), Pattern(1)), (Read(Data, 1)[0], Read(Data + 512, 1)[0]));
    }

    [Fact]
    public void WhatIsUnderWayEndsBeforeItIsStopped()
    {
        HeldDiskIo held = null!;
        using var disk = Open(wrap: io => held = new HeldDiskIo(io, _kick, static _ => true));
        for (var i = 0; i < 8; i++) Guest.Put(i, VirtioBlk.VIRTIO_BLK_T_IN, (ulong)i, (Data + (ulong)(i * 512), 512, true));
        Guest.Kick();
        Host.Until(() => held.HeldCount == 8);
        var stopping = new Thread(disk.Stop);
        stopping.Start();
        Host.Until(() => held.SawStop);
        // It is not taken any more.
        Guest.Put(8, VirtioBlk.VIRTIO_BLK_T_IN, 0, (Data, 512, true));
        Assert.Equal((true, 0), (stopping.IsAlive, (int)Guest.UsedIndex));
        held.Release();
        stopping.Join();
        Assert.Equal([0, 1, 2, 3, 4, 5, 6, 7], Guest.Returned.Order().ToArray());
        Assert.Equal(8, disk.Vring.NextAvailable);
        for (var i = 0; i < 8; i++) Assert.Equal(((byte)0, Pattern(i)), (Guest.Status(i), Read(Data + (ulong)(i * 512), 1)[0]));
    }

    /// <summary>More requests than there are threads, at once, many times over, by every buffer.</summary>
    [Fact]
    public void ManyRequestsEachEndOnce()
    {
        using var disk = Open();
        for (var round = 0; round < 200; round++)
        {
            for (var i = 0; i < 16; i++) Guest.Put(i, VirtioBlk.VIRTIO_BLK_T_IN, (ulong)((round * 16) + i) % Sectors, (Data + (ulong)(i * 512), 512, true));
            Guest.Kick();
            var expected = (ushort)((round + 1) * 16);
            Assert.True(SpinWait.SpinUntil(() => Guest.UsedIndex == expected, Host.Patience));
            for (var i = 0; i < 16; i++) Assert.Equal(((byte)0, Pattern(((round * 16) + i) % Sectors)), (Guest.Status(i), Read(Data + (ulong)(i * 512), 1)[0]));
        }
    }

    private protected abstract bool HasEventIndex { get; }

    private protected abstract IDiskIo OpenIo(SafeFileHandle image, VhostUserVring vring, SafeDescriptor stop);

    private static byte Pattern(int sector) => (byte)((sector % 251) + 1);

    private static byte[] RandomNumbers(int count)
    {
        var bytes = new byte[count];
        new Random(1).NextBytes(bytes);
        return bytes;
    }

    private RunningDisk Open(bool isReadOnly = false, FileAccess? access = null, SafeFileHandle? image = null, Func<IDiskIo, IDiskIo>? wrap = null)
    {
        File.WriteAllBytes(_folder["disk"], [.. Enumerable.Range(0, Sectors).SelectMany(static sector => Enumerable.Repeat(Pattern(sector), 512))]);
        image ??= File.OpenHandle(_folder["disk"], FileMode.Open, access ?? (isReadOnly ? FileAccess.Read : FileAccess.ReadWrite), FileShare.ReadWrite);
        var device = new BlockDevice(image, isReadOnly, id: "web")
        {
            IoFactory = (vring, stop) =>
            {
                var io = OpenIo(image, vring, stop);
                return wrap is null ? io : wrap(io);
            },
        };
        var state = new VhostUserVringState(QueueSize, null, 0, true, _kick, _call, null);
        var vring = new VhostUserVring(0, _memory, state, new VhostUserVringAddresses(Table, Available, Used, null), HasEventIndex ? device.Features : device.Features & ~(1UL << Vhost.VIRTIO_RING_F_EVENT_IDX), new VhostUserLog());
        device.StartVring(vring);
        return new RunningDisk(device, vring, image);
    }

    private byte[] Read(ulong address, int length)
    {
        var bytes = new byte[length];
        _memory.ReadExact(address, bytes);
        return bytes;
    }

    private sealed record RunningDisk(BlockDevice Device, VhostUserVring Vring, SafeFileHandle Image) : IDisposable
    {
        public void Stop() => Device.StopVring(Vring);

        public void Dispose()
        {
            Stop();
            Device.Dispose();
            Image.Dispose();
        }
    }
}
