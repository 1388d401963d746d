using Microsoft.Win32.SafeHandles;
using static GuestMemory.Core.Tests.FrontEnd;

namespace GuestMemory.Core.Tests;

/// <summary>A disk whose VM arrives by post-copy: pages of the guest are missing when the disk reads and writes them.</summary>
public sealed class PostcopyDiskTests : IDisposable
{
    private const int Sectors = 256;
    private const uint In = VirtioBlk.VIRTIO_BLK_T_IN;
    private const uint Out = VirtioBlk.VIRTIO_BLK_T_OUT;
    private const ulong Data = DiskGuest.Data;
    private const ulong Second = 0x40000;

    private readonly TestFolder _folder = new();
    private readonly SafeFileHandle _image;
    private readonly BlockDevice _device;
    private readonly HostResources _before;

    public PostcopyDiskTests()
    {
        File.WriteAllBytes(_folder["disk"], [.. Enumerable.Range(0, Sectors).SelectMany(static sector => Enumerable.Repeat(Pattern(sector), 512))]);
        _image = File.OpenHandle(_folder["disk"], FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite);
        _before = Host.Resources();
        _device = new BlockDevice(_image, isReadOnly: false, queueCount: 2);
    }

    public void Dispose()
    {
        _device.Dispose();
        _image.Dispose();
        _folder.Dispose();
    }

    [UffdFact]
    public void APageThatIsMissedComesFromTheFrontEnd()
    {
        using (var backend = Start())
        using (var vm = new ArrivingDisk(backend))
        {
            var guest = vm.Front.Guest;
            var bytes = new byte[0x3000];
            new Random(2).NextBytes(bytes);
            vm.Front.Memory.WriteExact(Data, bytes);
            // Out of the middle of pages, and into one whose other bytes stay.
            guest.Put(0, Out, 8, (Data + 0x200, 0x1000, false), (Data + 0x2000, 0x200, false));
            guest.Put(1, In, 3, (Data + 0x2800, 512, true));
            vm.Start();
            vm.Kick();
            Host.Until(() => vm.UsedIndex() == 2);
            Assert.True(backend.IsPostcopy);
            foreach (var page in new ulong[] { 0, 0x1000, 0x2000, 0x4000, Data, Data + 0x1000, Data + 0x2000 }) Assert.True(vm.IsMissed(page), $"the page at 0x{page:x} was not missed");
            Assert.Equal([.. bytes.AsSpan(0x2000, 0x800), .. Enumerable.Repeat(Pattern(3), 512), .. bytes.AsSpan(0x2a00, 0x600)], vm.Read(Data + 0x2000, 0x1000));
            Assert.Equal([.. bytes.AsSpan(0x200, 0x1000), .. bytes.AsSpan(0x2000, 0x200)], File.ReadAllBytes(_folder["disk"]).AsSpan(8 * 512, 0x1200).ToArray());
            Assert.True(EventFd.Clear(vm.Front.Call));

            vm.BringAll();
            Assert.Equal(0UL, vm.Front.Ask(VhostUserRequest.PostcopyEnd));
            Assert.False(backend.IsPostcopy);
            Assert.Equal(0, Host.Threads("vhost-disk"));
            // The rest of the guest's life takes place in the memory that has arrived.
            guest.Put(2, In, 5, (Data, 512, true));
            foreach (var page in new ulong[] { 0, 0x1000, 0x4000 }) vm.Bring(page);
            vm.Kick();
            Host.Until(() => vm.UsedIndex() == 3);
            Assert.Equal(Enumerable.Repeat(Pattern(5), 512), vm.Read(Data, 512));
            Assert.Null(backend.Error);
        }

        _device.Dispose();
        Host.AssertNoneLeft(_before);
    }

    /// <summary>
    /// The page of one request is late: other requests of its virtqueue, another virtqueue and the front end's requests go on. Both virtqueues write
    /// the file: the request that waits has no lock of it.
    /// </summary>
    [UffdFact]
    public void APageThatIsLateHoldsUpNothingElse()
    {
        using var backend = Start();
        using var vm = new ArrivingDisk(backend, Data);
        using var kick = EventFd.Create();
        using var call = EventFd.Create();
        var other = new DiskGuest(vm.Front.Memory, kick, call, at: Second);
        vm.Front.Guest.Put(0, Out, 8, (Data, 512, false));
        vm.Front.Guest.Put(1, In, 1, (Data + 0x1000, 512, true));
        vm.Front.Memory.WriteExact(Data + 0x2000, Enumerable.Repeat(Pattern(99), 512).ToArray());
        other.Put(0, Out, 2, (Data + 0x2000, 512, false));
        vm.Start();
        Host.Until(() => vm.IsMissed(Data) && vm.UsedIndex() == 1);
        vm.Front.StartVring(1, Second, kick, call);
        Host.Until(() => vm.UsedIndex(Second) == 1);
        Assert.Equal(Pattern(1), vm.Read(Data + 0x1000, 1)[0]);
        Assert.Equal((Pattern(99), Pattern(8)), (Sector(2), Sector(8)));
        Assert.Equal(2UL, vm.Front.Ask(VhostUserRequest.GetQueueNum));
        vm.Front.Accepted(VhostUserRequest.SetVringCall, Bytes(0UL), call);
        vm.Front.Send(VhostUserRequest.GetVringBase, State(1, 0));
        Assert.Equal(State(1, 1), vm.Front.Reply(VhostUserRequest.GetVringBase));
        Assert.Equal(1, vm.UsedIndex());

        vm.Bring(Data);
        Host.Until(() => vm.UsedIndex() == 2);
        Assert.Equal(0, Sector(8));
        vm.Front.Send(VhostUserRequest.GetVringBase, State(0, 0));
        Assert.Equal(State(0, 2), vm.Front.Reply(VhostUserRequest.GetVringBase));
    }

    /// <summary>A page of the ring itself is late: its virtqueue waits, and nothing else.</summary>
    [UffdFact]
    public void AVirtqueueThatIsLateHoldsUpNoOther()
    {
        using var backend = Start();
        using var vm = new ArrivingDisk(backend, DiskGuest.Available);
        using var kick = EventFd.Create();
        using var call = EventFd.Create();
        vm.Front.Guest.Put(0, In, 1, (Data, 512, true));
        new DiskGuest(vm.Front.Memory, kick, call, at: Second).Put(0, In, 2, (Data + 0x2000, 512, true));
        vm.Start();
        Host.Until(() => vm.IsMissed(DiskGuest.Available));
        vm.Front.StartVring(1, Second, kick, call);
        Host.Until(() => vm.UsedIndex(Second) == 1);
        Assert.Equal(0, vm.UsedIndex());
        vm.Bring(DiskGuest.Available);
        Host.Until(() => vm.UsedIndex() == 1);
    }

    public static TheoryData<ulong> LatePages => [DiskGuest.Table, DiskGuest.Available, DiskGuest.Used, 0x4000, Data];

    /// <summary>The front end dies while the disk waits for a page, whichever it is: no zeros reach the disk, and the back end serves the next one.</summary>
    [UffdTheory]
    [MemberData(nameof(LatePages))]
    public void TheEndOfTheFrontEndFreesWhatWaits(ulong late)
    {
        using (var backend = Start())
        {
            using (var vm = Waiting(backend, late))
            {
                vm.Front.Disconnect();
                Host.Until(() => backend.FrontEndProcessId is null);
            }

            Assert.Null(backend.Error);
            Assert.Equal(Pattern(8), Sector(8));
            using var next = new DiskFrontEnd(backend);
            next.Negotiate();
            next.Start();
            Assert.Equal(0, next.Guest.Do(In, 7, (Data, 512, true)));
        }

        _device.Dispose();
        Host.AssertNoneLeft(_before);
    }

    [UffdTheory]
    [MemberData(nameof(LatePages))]
    public void TheStopFreesWhatWaits(ulong late)
    {
        using (var backend = Start())
        using (var vm = Waiting(backend, late))
        {
            backend.Dispose();
            Assert.True(vm.Front.IsEnded);
            Assert.Equal(Pattern(8), Sector(8));
        }

        _device.Dispose();
        Host.AssertNoneLeft(_before);
    }

    /// <summary>The front end asks for the stop of a virtqueue that waits for a page, and dies: the thread of its requests waits with it.</summary>
    [UffdTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void AStopOfAVirtqueueThatWaitsEnds(bool byTheBackEnd)
    {
        HeldDiskIo io = null!;
        using var device = new BlockDevice(_image, isReadOnly: false)
        {
            IoFactory = (vring, stop) => io = new HeldDiskIo(new ThreadDiskIo(_image, vring.Kick, stop, mayWait: true), vring.Kick, static _ => false),
        };
        using var backend = VhostUserBackend.Start(_folder["s"], device, []);
        using var vm = Waiting(backend, Data);
        vm.Front.Send(VhostUserRequest.GetVringBase, State(0, 0));
        Host.Until(() => io.SawStop);
        if (byTheBackEnd) backend.Dispose();
        else vm.Front.Disconnect();
        Host.Until(() => backend.FrontEndProcessId is null);
    }

    /// <summary>Who reads the memory of the VM waits with it, and gets an error in place of zeros.</summary>
    [UffdFact]
    public void AReadThatWaitsEndsWithTheFrontEnd()
    {
        using var backend = Start();
        using var vm = new ArrivingDisk(backend, Data);
        var memory = backend.Memory;
        Assert.Equal(Size, memory.Size);
        Exception? failure = null;
        var reader = new Thread(() => failure = Record.Exception(() => memory.ReadExact(Data, new byte[512], CancellationToken.None)));
        reader.Start();
        Host.Until(() => vm.IsMissed(Data));
        Assert.True(reader.IsAlive);
        Assert.Equal(GuestMemoryError.RegionInUse, Assert.Throws<GuestMemoryException>(() => memory.Regions[0].GetMmapRegion().Release(force: false)).Error);
        vm.Front.Disconnect();
        Assert.True(reader.Join(Host.Patience));
        Assert.Equal(GuestMemoryError.RegionDisposed, Assert.IsType<GuestMemoryException>(failure).Error);
    }

    /// <summary>The holder of a userfaultfd of this process can do more with it than a front end of another user may.</summary>
    [OtherUserFact]
    public void PostcopyIsNotForOtherUsersUnlessTrusted()
    {
        Assert.SkipUnless(VhostUserPostcopy.IsSupported, "this process cannot have a userfaultfd");
        Assert.Equal(0, FileStatus.TryChangeMode(_folder.Path, 0b111_001_001));
        foreach (var trusted in new[] { false, true })
        {
            using var backend = VhostUserBackend.Start(_folder["s"], _device, ["65534"], trusted);
            var offered = 0UL;
            Stress.RunAll(() =>
            {
                Capabilities.Drop(0, new UserAccount(65534, 65534, []), wholeProcess: false);
                using var front = new DiskFrontEnd(backend);
                offered = front.Ask(VhostUserRequest.GetProtocolFeatures);
            });
            Assert.Equal(trusted ? 0x930BUL : 0x920BUL, offered);
        }
    }

    private static byte Pattern(int sector) => (byte)((sector % 251) + 1);

    /// <summary>The first byte of a sector of the image.</summary>
    private byte Sector(int number)
    {
        Span<byte> first = stackalloc byte[1];
        RandomAccess.Read(_image, first, number * 512);
        return first[0];
    }

    private VhostUserBackend Start() => VhostUserBackend.Start(_folder["s"], _device, []);

    /// <summary>A disk that waits for a page that does not come.</summary>
    private static ArrivingDisk Waiting(VhostUserBackend backend, ulong late)
    {
        var vm = new ArrivingDisk(backend, late);
        vm.Front.Guest.Put(0, Out, 8, (Data, 512, false));
        vm.Start();
        vm.Kick();
        Host.Until(() => vm.IsMissed(late));
        return vm;
    }
}
