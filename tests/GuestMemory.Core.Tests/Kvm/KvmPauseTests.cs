namespace GuestMemory.Core.Tests;

/// <summary>Pauses of guests that really run.</summary>
public sealed class KvmPauseTests : IDisposable
{
    private TestGuest Guest { get; } = new();

    public void Dispose() => Guest.Dispose();

    [GuestFact]
    public void ARunningGuestIsHeldUntilTheLastPauseEnds()
    {
        Guest.Load(TestGuest.LoopForEver, TestGuest.Hlt);
        var run = Task.Factory.StartNew(() => Guest.Run(), CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);
        for (var round = 0; round < 100; round++)
        {
            using var first = Guest.Vm.Pause();
            using var second = Guest.Vm.Pause();
            second.Dispose();
            second.Dispose();
            // Its registers can be had, which its own run would keep.
            Assert.Equal(0x1000UL, Guest.Vcpu.Registers.rip);
        }

        using (Guest.Vm.Pause()) Guest.Memory.WriteExact(new GuestAddress(0x1000), [0x90, 0x90]);
        Assert.Equal(KvmExitReason.Hlt, run.GetAwaiter().GetResult().Reason);
    }

    /// <summary>When a pause has begun no guest runs on, not even for as long as it takes to interrupt it.</summary>
    [GuestFact]
    public void NothingIsWrittenInAPause()
    {
        // again: inc qword [0x10000]; jmp again
        Guest.Load([0x48, 0xFF, 0x04, 0x25, 0x00, 0x00, 0x01, 0x00], [0xEB, 0xF6]);
        using var over = new CancellationTokenSource();
        var run = Task.Factory.StartNew(() => Record.Exception(() => Guest.Vcpu.Run(over.Token)), CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);
        ulong last = 0;
        for (var round = 0; round < 300; round++)
        {
            Assert.True(SpinWait.SpinUntil(() => Count() != last || run.IsCompleted, Host.Patience));
            using var pause = Guest.Vm.Pause();
            last = Count();
            Thread.Sleep(1);
            Assert.Equal(last, Count());
        }

        over.Cancel();
        Assert.IsAssignableFrom<OperationCanceledException>(run.GetAwaiter().GetResult());

        ulong Count() => Guest.Memory.ReadObject<ulong>(new GuestAddress(0x10000));
    }

    /// <summary>A vCPU that begins, or whose caller handles an exit meanwhile, is held when it runs; that handling waits for nothing.</summary>
    [GuestFact]
    public void AVcpuThatBeginsMeanwhileIsHeld()
    {
        Guest.Load(TestGuest.Store8(0x10000, 1), TestGuest.Hlt);
        Task<KvmExit> run;
        using (Guest.Vm.Pause())
        {
            run = Task.Factory.StartNew(() => Guest.Run(), CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);
            using var limit = new CancellationTokenSource(20);
            Assert.ThrowsAny<OperationCanceledException>(() => Guest.Vcpu.Run(limit.Token));
            Assert.Equal(0, Guest.Memory.ReadObject<byte>(new GuestAddress(0x10000)));
        }

        Assert.Equal(KvmExitReason.Hlt, run.GetAwaiter().GetResult().Reason);
        Assert.Equal(1, Guest.Memory.ReadObject<byte>(new GuestAddress(0x10000)));
    }

    [GuestTheory]
    [InlineData(true)]
    [InlineData(false)]
    public void AVmThatIsRemovedEndsItsHeldVcpus(bool isRunning)
    {
        Guest.Load(TestGuest.LoopForEver);
        Exception? failure = null;
        var runner = new Thread(() => failure = Record.Exception(() => Guest.Vcpu.Run()));
        if (isRunning) runner.Start();
        var pause = Guest.Vm.Pause();
        if (!isRunning) runner.Start();
        Guest.Vm.Dispose();
        Assert.True(runner.Join(Host.Patience));
        Assert.Equal(GuestMemoryError.VmDisposed, Assert.IsAssignableFrom<GuestMemoryException>(failure).Error);
        pause.Dispose();
        Assert.Equal(GuestMemoryError.VmDisposed, Assert.ThrowsAny<GuestMemoryException>(() => Guest.Vm.Pause()).Error);
    }

    /// <summary>Many threads pause the guest at once, and every second one is cancelled before it waits: the guest goes on after the last.</summary>
    [GuestFact]
    public void PausesOfManyThreadsEndAlsoWhereSomeAreCancelled()
    {
        Guest.Load(TestGuest.LoopForEver, TestGuest.Hlt);
        var run = Task.Factory.StartNew(() => Guest.Run(), CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);
        Parallel.For(0, 200, i =>
        {
            using var limit = new CancellationTokenSource();
            if (i % 2 == 0) limit.Cancel();
            try
            {
                using (Guest.Vm.Pause(limit.Token)) Thread.Yield();
            }
            catch (OperationCanceledException)
            {
                // As meant.
            }
        });
        using (Guest.Vm.Pause()) Guest.Memory.WriteExact(new GuestAddress(0x1000), [0x90, 0x90]);
        Assert.Equal(KvmExitReason.Hlt, run.GetAwaiter().GetResult().Reason);
    }
}
