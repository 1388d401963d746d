using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>The guest memory of other processes. The VMMs here are played by vmm.c, which has their mappings; a real QEMU is in tests/Integration/Attach.Tests.ps1.</summary>
public sealed class AttachedProcessTests(VmmFixture vmms) : IClassFixture<VmmFixture>
{
    private const ulong Mebi = 1 << 20, Gibi = 1 << 30;

    [CompilerTheory]
    [InlineData("firecracker", "anon:256", "0+256")]
    [InlineData("firecracker", "anon:3072", "0+3072")]
    [InlineData("firecracker", "anon:3072 anon:1024", "0+3072 4096+1024")]
    [InlineData("firecracker", "anon:1024 anon:3072", "0+3072 4096+1024")]
    [InlineData("firecracker", "anon:3072 anon:5120", "0+3072 4096+5120")]
    [InlineData("firecracker", "memfd:guest_mem:3072+512", "0+3072 4096+512")]
    [InlineData("firecracker-v1.7.0-x86_64", "memfd:guest_mem:128", "0+128")]
    [InlineData("cloud-hypervisor", "memfd:ch_ram:3072 memfd:ch_ram:1024 --memory size=4G,shared=on", "0+3072 4096+1024")]
    [InlineData("cloud-hypervisor", "anon:512", "0+512")]
    [InlineData("cloud-hypervisor", "anon:1024 --memory=size=1G", "0+1024")]
    [InlineData("crosvm", "memfd:crosvm_guest:2048+1024", "0+2048 4096+1024")]
    [InlineData("crosvm", "memfd:crosvm_guest:256", "0+256")]
    public void TheMappingsOfAVmmAreFound(string name, string arguments, string expected)
    {
        Assert.SkipUnless(RuntimeInformation.ProcessArchitecture == Architecture.X64, "the addresses are those of x86-64");
        using var vmm = vmms.Start(name, arguments.Split(' '));
        using var attached = AttachedProcess.Attach(vmm.Id);
        Assert.Equal(expected, string.Join(" ", attached.Memory.Regions.Select(static region => $"{region.GuestAddress / Mebi}+{region.Size / Mebi}")));
        Assert.Equal(vmm.Id, attached.Memory.ProcessId);
        foreach (var region in attached.Memory.Regions)
        {
            var part = vmm.Parts.FindIndex(part => part.Address == ((GuestRegionProcess)region).ProcessAddress);
            Assert.True(part >= 0);
            Assert.Equal((ulong)part + 1, attached.Memory.ReadObject<ulong>(new GuestAddress(region.GuestAddress)));
        }
    }

    [CompilerTheory]
    [InlineData("firecracker", "anon:3072 anon:3072", GuestMemoryError.LayoutUnknown)]
    [InlineData("firecracker", "anon:4096", GuestMemoryError.LayoutUnknown)]
    [InlineData("firecracker", "anon:1", GuestMemoryError.LayoutUnknown)]
    [InlineData("cloud-hypervisor", "anon:256 --memory size=1G", GuestMemoryError.LayoutUnknown)]
    [InlineData("cloud-hypervisor", "anon:512 anon:512", GuestMemoryError.LayoutUnknown)]
    [InlineData("cloud-hypervisor", "anon:512 --memory-zone id=a", GuestMemoryError.LayoutUnknown)]
    [InlineData("crosvm", "anon:512", GuestMemoryError.LayoutUnknown)]
    [InlineData("crosvm", "memfd:crosvm_guest:16+16+16", GuestMemoryError.LayoutUnknown)]
    [InlineData("another", "anon:512", GuestMemoryError.NoGuestMemory)]
    public void WhatIsNotCertainIsAnError(string name, string arguments, GuestMemoryError expected)
    {
        Assert.SkipUnless(RuntimeInformation.ProcessArchitecture == Architecture.X64, "the addresses are those of x86-64");
        using var vmm = vmms.Start(name, arguments.Split(' '));
        Assert.Equal(expected, Assert.Throws<GuestMemoryException>(() => AttachedProcess.Attach(vmm.Id)).Error);
    }

    [CompilerFact]
    public void ALayoutSaysWhereTheMemoryOfAnyProgramLies()
    {
        using var vmm = vmms.Start("another", "anon:64", "memfd:ram:32+32", "anon:64");
        Check([new GuestLayoutRange(0, 64 * Mebi, vmm.Parts[3].Address), new GuestLayoutRange(4 * Gibi, 32 * Mebi, vmm.Parts[1].Address)], 4, 2);
        Check([new GuestLayoutRange(Gibi, Mebi, vmm.Parts[2].Address)], 3);
        var error = Assert.Throws<GuestMemoryException>(() => AttachedProcess.Attach(vmm.Id, new AttachOptions { Layout = [new GuestLayoutRange(0, 64 * Mebi)] }));
        Assert.Equal(GuestMemoryError.LayoutUnknown, error.Error);
        Assert.Contains($"0x{vmm.Parts[0].Address:x}", error.Message, StringComparison.Ordinal);

        void Check(GuestLayoutRange[] layout, params ulong[] marks)
        {
            using var attached = AttachedProcess.Attach(vmm.Id, new AttachOptions { Layout = layout });
            Assert.Equal(marks, attached.Memory.Regions.Select(region => attached.Memory.ReadObject<ulong>(new GuestAddress(region.GuestAddress))));
        }
    }

    [CompilerFact]
    public void ALayoutWithoutPlacesIsLaidIntoTheMemoryOfItsLength()
    {
        using var vmm = vmms.Start("another", "anon:96", "anon:32");
        using var attached = AttachedProcess.Attach(vmm.Id, new AttachOptions { Layout = [new GuestLayoutRange(0, 64 * Mebi), new GuestLayoutRange(4 * Gibi, 32 * Mebi)] });
        Assert.Equal([vmm.Parts[0].Address, vmm.Parts[0].Address + 64 * Mebi], attached.Memory.Regions.Cast<GuestRegionProcess>().Select(static region => region.ProcessAddress));
    }

    [CompilerTheory]
    [InlineData(0UL, 0UL, GuestMemoryError.ZeroSize)]
    [InlineData(0UL, 65UL << 20, GuestMemoryError.RangeNotMapped)]
    [InlineData(ulong.MaxValue, 4096UL, GuestMemoryError.InvalidGuestRegion)]
    [InlineData(0UL, ulong.MaxValue, GuestMemoryError.RangeNotMapped)]
    public void ALayoutThatDoesNotFitIsAnError(ulong address, ulong size, GuestMemoryError expected)
    {
        using var vmm = vmms.Start("another", "anon:64");
        Assert.Equal(expected, Assert.Throws<GuestMemoryException>(() => AttachedProcess.Attach(vmm.Id, new AttachOptions { Layout = [new GuestLayoutRange(address, size, vmm.Parts[0].Address)] })).Error);
    }

    [CompilerTheory]
    [InlineData("anon:64")]
    [InlineData("memfd:guest_mem:64")]
    public void MemoryIsWrittenOnlyWhereThatIsAskedFor(string part)
    {
        using var vmm = vmms.Start("firecracker", part);
        using var reader = AttachedProcess.Attach(vmm.Id);
        var at = new GuestAddress(reader.Memory.Regions[0].GuestAddress + 12345);
        var error = Assert.Throws<GuestMemoryException>(() => reader.Memory.WriteExact(at, new byte[] { 1 }));
        Assert.Equal(GuestMemoryError.PageNotAccessible, error.Error);
        Assert.Contains("its protection is Read", error.Message, StringComparison.Ordinal);
        using var writer = AttachedProcess.Attach(vmm.Id, new AttachOptions { IsWritable = true });
        var bytes = new byte[100_000];
        new Random(1).NextBytes(bytes);
        writer.Memory.WriteExact(at, bytes);
        var read = new byte[bytes.Length];
        reader.Memory.ReadExact(at, read);
        Assert.Equal(bytes, read);
    }

    [CompilerTheory]
    [InlineData("anon:64")]
    [InlineData("memfd:guest_mem:64")]
    public void AProcessThatHasEndedIsAnError(string part)
    {
        using var vmm = vmms.Start("firecracker", part);
        using var attached = AttachedProcess.Attach(vmm.Id, new AttachOptions { IsWritable = true, Pauses = true });
        var at = new GuestAddress(attached.Memory.Regions[0].GuestAddress);
        Assert.Equal(1UL, attached.Memory.ReadObject<ulong>(at));
        vmm.Kill();
        Assert.True(attached.HasEnded);
        Assert.Equal(GuestMemoryError.ProcessEnded, Assert.Throws<GuestMemoryException>(() => attached.Memory.ReadObject<ulong>(at)).Error);
        Assert.Equal(GuestMemoryError.ProcessEnded, Assert.Throws<GuestMemoryException>(() => attached.Memory.WriteObject(at, 1UL)).Error);
        Assert.Equal(GuestMemoryError.ProcessEnded, Assert.Throws<GuestMemoryException>(() => attached.Memory.Hold()).Error);
        Assert.Equal(GuestMemoryError.ProcessNotFound, Assert.Throws<GuestMemoryException>(() => AttachedProcess.Attach(vmm.Id)).Error);
    }

    [CompilerFact]
    public void TheMemoryOfAProcessThatHasEndedIsFree()
    {
        using var vmm = vmms.Start("firecracker", "memfd:guest_mem:64");
        using var attached = AttachedProcess.Attach(vmm.Id);
        Assert.Contains(Links(), static link => link.StartsWith("/memfd:guest_mem", StringComparison.Ordinal));
        vmm.Kill();
        // Nobody reads it, and somebody has it still.
        Host.Until(() => !Links().Any(static link => link.StartsWith("/memfd:guest_mem", StringComparison.Ordinal)));
        Host.Until(() => Host.Threads("guest-memory-pe") == 0);
        Assert.Equal(GuestMemoryError.ProcessEnded, Assert.Throws<GuestMemoryException>(() => attached.Memory.ReadObject<ulong>(new GuestAddress(attached.Memory.Regions[0].GuestAddress))).Error);

        static string[] Links() => [.. Directory.GetFiles("/proc/self/fd").Select(static link => new FileInfo(link).LinkTarget ?? "")];
    }

    [CompilerFact]
    public void WhatTheGuestNeverTouchedStaysUnallocated()
    {
        using var vmm = vmms.Start("firecracker", "memfd:guest_mem:64");
        using var attached = AttachedProcess.Attach(vmm.Id);
        var file = Assert.IsType<FileOffset>(attached.Memory.Regions[0].GetFileOffset());
        // By now it has touched what it touches.
        AssertGoesOn(attached);
        var before = FileStatus.Get(file.File).stx_blocks;
        var read = new byte[64 * Mebi];
        attached.Memory.ReadExact(new GuestAddress(attached.Memory.Regions[0].GuestAddress), read);
        Assert.Equal(1, read[0]);
        Assert.Equal(before, FileStatus.Get(file.File).stx_blocks);
    }

    [CompilerFact]
    public void MemoryThatAHandlerProvidesIsReadInTheProcess()
    {
        using var vmm = vmms.Start("firecracker", "memfd:guest_mem:64");
        Assert.SkipUnless(vmm.Watch(), Needs.UserfaultfdReason);
        using var attached = AttachedProcess.Attach(vmm.Id);
        // The file has a hole where a handler would put the page.
        Assert.Null(attached.Memory.Regions[0].GetFileOffset());
        Assert.Equal(1UL, attached.Memory.ReadObject<ulong>(new GuestAddress(attached.Memory.Regions[0].GuestAddress)));
        using var limit = new CancellationTokenSource(TimeSpan.FromMilliseconds(200));
        Assert.ThrowsAny<OperationCanceledException>(() => attached.Memory.ReadExact(new GuestAddress(attached.Memory.Regions[0].GuestAddress + 2 * HostPage.Size), new byte[1].AsMemory(), limit.Token));
    }

    [CompilerFact]
    public void AProcessStandsStillWhileItIsHeld()
    {
        using var vmm = vmms.Start("firecracker", "anon:64");
        using var attached = AttachedProcess.Attach(vmm.Id, new AttachOptions { Pauses = true });
        Assert.Empty(attached.Warnings);
        AssertGoesOn(attached);
        using (attached.Memory.Hold())
        {
            using (attached.Memory.Hold()) AssertStands(attached);
            AssertStands(attached);
            // Another view of the same process shares the stop.
            using var other = AttachedProcess.Attach(vmm.Id, new AttachOptions { Pauses = true });
            using (other.Memory.Hold()) AssertStands(other);
            AssertStands(attached);
        }

        AssertGoesOn(attached);
        Host.Until(() => vmm.Status("TracerPid") == "0");
        using var free = AttachedProcess.Attach(vmm.Id);
        Assert.Null(free.Memory.Hold());
    }

    [CompilerFact]
    public void ManyHoldAProcessAtOnce()
    {
        using var vmm = vmms.Start("firecracker", "anon:64");
        using var attached = AttachedProcess.Attach(vmm.Id, new AttachOptions { Pauses = true });
        Parallel.For(0, 8, _ =>
        {
            for (var i = 0; i < 10; i++)
            {
                using (attached.Memory.Hold()) AssertStands(attached);
            }
        });
        AssertGoesOn(attached);
    }

    [CompilerFact]
    public void AProcessThatIsKilledWhileItIsHeldEnds()
    {
        using var vmm = vmms.Start("firecracker", "anon:64");
        using var attached = AttachedProcess.Attach(vmm.Id, new AttachOptions { Pauses = true });
        using (attached.Memory.Hold())
        {
            vmm.Kill();
            Assert.True(attached.HasEnded);
        }

        Assert.Equal(GuestMemoryError.ProcessEnded, Assert.Throws<GuestMemoryException>(() => attached.Memory.Hold()).Error);
    }

    [CompilerFact]
    public void AClientThatLeavesWhileItsReadWaitsIsGone()
    {
        using var vmm = vmms.Start("firecracker", "memfd:guest_mem:64");
        Assert.SkipUnless(vmm.Watch(), Needs.UserfaultfdReason);
        using var attached = AttachedProcess.Attach(vmm.Id);
        using var export = MemoryExport.Start(attached.Memory, new MemoryExportOptions { Name = "vm" });
        using (var client = new NbdClient(export.Port!.Value).Go())
        {
            client.SendRequest(0, attached.Memory.Regions[0].GuestAddress + 2 * HostPage.Size, 1);
            Assert.Equal(1, export.ConnectionCount);
        }

        Host.Until(() => export.ConnectionCount == 0);
        Assert.Null(export.Error);
    }

    [CompilerFact]
    public void WhereAnotherTracesTheProcessASignalStopsIt()
    {
        using var vmm = vmms.Start("firecracker", "anon:64");
        using var traced = new ManualResetEventSlim();
        using var over = new ManualResetEventSlim();
        var tracer = new Thread(() =>
        {
            TracedThread.BeginTracing();
            try
            {
                var id = Directory.GetDirectories($"/proc/{vmm.Id}/task").Select(static task => int.Parse(Path.GetFileName(task), System.Globalization.CultureInfo.InvariantCulture)).Max();
                using var thread = TracedThread.TrySeize(vmm.Id, id, runsCalls: false);
                traced.Set();
                // The signal may be given to this thread: it is passed on, as strace does.
                while (!over.Wait(10))
                {
                    if (Ptrace.TryGetStop(id, out var stop) == 1 && stop == 19) _ = Ptrace.TryResume(Ptrace.PTRACE_CONT, id, stop);
                }
            }
            finally
            {
                TracedThread.EndTracing();
            }
        });
        tracer.Start();
        try
        {
            traced.Wait();
            using var attached = AttachedProcess.Attach(vmm.Id, new AttachOptions { Pauses = true });
            Assert.Contains("SIGSTOP", Assert.Single(attached.Warnings), StringComparison.Ordinal);
            using (attached.Memory.Hold()) AssertStands(attached);
        }
        finally
        {
            over.Set();
            tracer.Join();
        }

        using var again = AttachedProcess.Attach(vmm.Id);
        AssertGoesOn(again);
    }

    [CompilerFact]
    public void NothingStaysOpen()
    {
        using var vmm = vmms.Start("firecracker", "memfd:guest_mem:3072+64", "anon:1");
        var before = Directory.GetFiles("/proc/self/fd").Length;
        for (var i = 0; i < 20; i++)
        {
            using var attached = AttachedProcess.Attach(vmm.Id, new AttachOptions { Pauses = i == 0 });
            var at = new GuestAddress(attached.Memory.Regions[0].GuestAddress);
            Assert.Equal(1UL, attached.Memory.ReadObject<ulong>(at));
            attached.Dispose();
            Assert.Equal(GuestMemoryError.RegionDisposed, Assert.Throws<GuestMemoryException>(() => attached.Memory.ReadObject<ulong>(at)).Error);
            Assert.Null(Record.Exception(attached.Dispose));
        }

        Host.Until(() => Directory.GetFiles("/proc/self/fd").Length <= before);
        Host.Until(() => Host.Threads("guest-memory-pe") == 0);
    }

    [Fact]
    public void AProcessThatIsNoneIsAnError()
    {
        Assert.Equal(GuestMemoryError.ProcessNotFound, Assert.Throws<GuestMemoryException>(() => AttachedProcess.Attach(int.MaxValue)).Error);
        Assert.Equal(GuestMemoryError.ProcessNotFound, Assert.Throws<GuestMemoryException>(() => AttachedProcess.Attach(-1)).Error);
        Assert.Equal(GuestMemoryError.NoGuestMemory, Assert.Throws<GuestMemoryException>(() => AttachedProcess.Attach(Environment.ProcessId)).Error);
        Assert.False(AttachedProcess.IsVmm(Environment.ProcessId));
    }

    private static ulong CountOf(AttachedProcess attached) => attached.Memory.ReadObject<ulong>(new GuestAddress(attached.Memory.Regions[0].GuestAddress + HostPage.Size));

    private static void AssertStands(AttachedProcess attached)
    {
        // No thread can run: each is in a stop of ptrace(2) (t) or of a signal (T).
        Assert.All(Directory.GetDirectories($"/proc/{attached.ProcessId}/task"), static task => Assert.True(File.ReadAllText(Path.Combine(task, "stat")).Split(") ")[^1][0] is 't' or 'T', task));
        // Counting goes on in nanoseconds where it goes on at all.
        var count = CountOf(attached);
        for (var i = 0; i < 1000; i++) Assert.Equal(count, CountOf(attached));
    }

    private static void AssertGoesOn(AttachedProcess attached)
    {
        var count = CountOf(attached);
        Host.Until(() => CountOf(attached) > count);
    }
}
