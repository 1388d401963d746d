namespace GuestMemory.Core.Tests;

/// <summary>Guests that really run.</summary>
public sealed class KvmVcpuTests : IDisposable
{
    private TestGuest Guest { get; } = new();

    public void Dispose() => Guest.Dispose();

    [GuestFact]
    public void RealModeWritesMemoryAndAPortAndHalts()
    {
        // mov al, 0x2a; mov [0x2000], al; out 0x10, al; hlt
        Guest.Memory.WriteExact(new GuestAddress(0x1008), [0xB0, 0x2A, 0xA2, 0x00, 0x20, 0xE6, 0x10, 0xF4]);
        Guest.Vcpu.SetRealMode(0x1008);
        Assert.Equal(new KvmExit(KvmExitReason.Io, 0x10, 1, IsWrite: true, 0x2A), Guest.Run());
        Assert.Equal(KvmExitReason.Hlt, Guest.Run().Reason);
        Assert.Equal(0x2A, Guest.Memory.ReadObject<byte>(new GuestAddress(0x2000)));
    }

    [GuestFact]
    public void LongModeWritesMemoryThatTheHostReads()
    {
        Guest.RunToEnd(TestGuest.Store64(0x10008, 0x0123456789ABCDEF), TestGuest.Store8(0x11FFF, 0x5A));
        Assert.Equal(0x0123456789ABCDEFUL, Guest.Memory.ReadObject<ulong>(new GuestAddress(0x10008)));
        Assert.Equal(0x5A, Guest.Memory.ReadObject<byte>(new GuestAddress(0x11FFF)));
    }

    [GuestFact]
    public void TheGuestReadsWhatTheHostWrites()
    {
        Guest.Memory.WriteObject(new GuestAddress(0x10000), 0xFEDCBA9876543210UL);
        Guest.RunToEnd(TestGuest.LoadToRcx(0x10000), TestGuest.StoreRcx(0x12000));
        Assert.Equal(0xFEDCBA9876543210UL, Guest.Memory.ReadObject<ulong>(new GuestAddress(0x12000)));
    }

    [GuestFact]
    public void AnAccessWithoutMemoryIsMmio()
    {
        const ulong Address = 0x1_4000_0010;
        Guest.Load(TestGuest.Store32(Address, 0x89ABCDEF), TestGuest.LoadToRcx(Address), TestGuest.StoreRcx(0x12000), TestGuest.Hlt);
        Assert.Equal(new KvmExit(KvmExitReason.Mmio, Address, 4, IsWrite: true, 0x89ABCDEF), Guest.Run());
        Assert.Equal(new KvmExit(KvmExitReason.Mmio, Address, 8), Guest.Run());
        Guest.Vcpu.SetReadValue(0x1122334455667788);
        Assert.Equal(KvmExitReason.Hlt, Guest.Run().Reason);
        Assert.Equal(0x1122334455667788UL, Guest.Memory.ReadObject<ulong>(new GuestAddress(0x12000)));
    }

    [GuestFact]
    public void APortIsWrittenAndRead()
    {
        Guest.Load(TestGuest.Out(0x3F8, 0x12345678, 4), TestGuest.Out(0x3F8, 0x12345678, 2), TestGuest.In8(0x60), [0x88, 0x04, 0x25, 0x00, 0x20, 0x01, 0x00] /* mov [0x12000], al */, TestGuest.Hlt);
        Assert.Equal(new KvmExit(KvmExitReason.Io, 0x3F8, 4, IsWrite: true, 0x12345678), Guest.Run());
        Assert.Equal(new KvmExit(KvmExitReason.Io, 0x3F8, 2, IsWrite: true, 0x5678), Guest.Run());
        Assert.Equal(new KvmExit(KvmExitReason.Io, 0x60, 1), Guest.Run());
        Guest.Vcpu.SetReadValue(0x1A7);
        Assert.Equal(KvmExitReason.Hlt, Guest.Run().Reason);
        Assert.Equal(0xA7, Guest.Memory.ReadObject<byte>(new GuestAddress(0x12000)));
    }

    [GuestFact]
    public void AGuestThatNeverEndsIsInterruptedAndRunsOn()
    {
        Guest.Load(TestGuest.LoopForEver, TestGuest.Hlt);
        foreach (var milliseconds in (int[])[0, 1, 50])
        {
            using var limit = new CancellationTokenSource(milliseconds);
            Assert.ThrowsAny<OperationCanceledException>(() => Guest.Vcpu.Run(limit.Token));
        }

        // nop; nop in place of the jump
        Guest.Memory.WriteExact(new GuestAddress(0x1000), [0x90, 0x90]);
        Assert.Equal(KvmExitReason.Hlt, Guest.Run().Reason);
    }

    [GuestFact]
    public void DisposingTheVmEndsARunningGuest()
    {
        Guest.Load(TestGuest.LoopForEver);
        Exception? failure = null;
        using var started = new ManualResetEventSlim();
        var runner = new Thread(() =>
        {
            started.Set();
            failure = Record.Exception(() => Guest.Vcpu.Run());
        });
        runner.Start();
        started.Wait();
        Guest.Vm.Dispose();
        runner.Join();
        Assert.Equal(GuestMemoryError.VmDisposed, Assert.IsAssignableFrom<GuestMemoryException>(failure).Error);
        Assert.Equal(GuestMemoryError.VmDisposed, Assert.Throws<GuestMemoryException>(() => Guest.Vcpu.Run()).Error);
        Assert.Equal(GuestMemoryError.VmDisposed, Assert.Throws<SyscallException>(() => Guest.Vm.CreateVcpu()).Error);
    }

    [GuestFact]
    public void BadStartsAreRefused()
    {
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Assert.Throws<GuestMemoryException>(() => Guest.Vcpu.SetRealMode(0x100000)).Error);
        Assert.Equal(GuestMemoryError.NotPageAligned, Assert.Throws<GuestMemoryException>(() => Guest.Vcpu.SetLongMode(0x1000, 0x4008)).Error);
        Assert.Equal(GuestMemoryError.InvalidGuestAddress, Assert.Throws<GuestMemoryException>(() => Guest.Vcpu.SetLongMode(0x1000, 0x10000000)).Error);
        Assert.Throws<ArgumentOutOfRangeException>(() => Guest.Vcpu.SetLongMode(0x1000, 0x4000, mapped: 0));
    }

    [GuestFact]
    public void MemoryForcedAwayIsGoneForTheGuestToo()
    {
        const ulong Address = 0x1_0000_0000;
        var mapping = SlotMapping.Anonymous(0x2000);
        Guest.Vm.AddMemoryRegion(new GuestAddress(Address), mapping, readOnly: false, logDirtyPages: false, MemCacheType.CacheCoherent);
        Guest.RunToEnd(TestGuest.Store8(Address, 1));
        // Whoever still has the mapping must not leave the guest with the addresses of other memory.
        mapping.Dispose();
        Assert.DoesNotContain(Guest.Vm.Slots, slot => slot.GuestAddress == Address);
        Guest.Load(TestGuest.Store8(Address, 2), TestGuest.Hlt);
        Assert.Equal(new KvmExit(KvmExitReason.Mmio, Address, 1, IsWrite: true, 2), Guest.Run());
    }

    [GuestFact(userfault: true)]
    public void AGuestWhoseMemoryComesThroughAPageFaultHandlerRunsToItsEnd()
    {
        using var folder = new TestFolder();
        var image = folder.WriteImage("image", 32);
        // The code comes out of the image, too.
        TestGuest.WriteCode(image, TestGuest.LoadToRcx(0x10000), TestGuest.StoreRcx(0x12000), TestGuest.Hlt);
        using var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = folder["h.sock"], MemoryPath = image, Strategy = UffdStrategy.OnDemand });
        using var guest = new TestGuest();
        UffdRegistration.Connect(handler.SocketPath, guest.Memory);
        guest.Start();
        Assert.Equal(KvmExitReason.Hlt, guest.Run().Reason);
        var expected = new byte[4096];
        TestFolder.Fill(expected, 16);
        Assert.Equal(BitConverter.ToUInt64(expected), guest.Memory.ReadObject<ulong>(new GuestAddress(0x12000)));
        // 3 pages of tables, code, source and destination.
        Host.Until(() => handler.FaultCount == 6);
        Assert.Equal((6L, null), (handler.FaultCount, handler.Error));

        // The balloon: the page reads as zero for the guest then.
        guest.Vm.HandleBalloonEvent(BalloonEvent.Inflate(new GuestAddress(0x10000), 0x1000));
        guest.Start();
        Assert.Equal(KvmExitReason.Hlt, guest.Run().Reason);
        Assert.Equal(0UL, guest.Memory.ReadObject<ulong>(new GuestAddress(0x12000)));
    }
}
