namespace GuestMemory.Core.Tests;

/// <summary>What upstream leaves out: errors of single frames, frames that are paged out, grants that go back, and accesses that fail.</summary>
public sealed class XenMmapRegionTests
{
    private const MmapXenFlags OnDemand = MmapXenFlags.Grant | MmapXenFlags.NoAdvanceMap;

    [Theory]
    [InlineData(Errno.EPERM)]
    [InlineData(Errno.EINVAL)]
    public void AFrameThatFailsIsNamed(int error)
    {
        using var xen = new FakeXen(0x10000) { FrameError = frame => frame is 0x40001 or 0x40003 ? -error : 0 };
        var before = FakeXen.Mappings();
        var failure = Assert.Throws<SyscallException>(() => Foreign(xen, 0x5000));
        Assert.Equal((GuestMemoryError.FrameNotMapped, error, 0x40001000UL), (failure.Error, failure.ErrorCode, failure.Address));
        Assert.Contains("frame 0x40001 (guest address 0x40001000) of domain 5", failure.Message, StringComparison.Ordinal);
        Assert.Contains("2 of 5, 0x40001, 0x40003.", failure.Message, StringComparison.Ordinal);
        // Nothing of it stays mapped, also not what did not fail.
        Assert.Equal((before, 1), (FakeXen.Mappings(), xen.Requests.Count));
    }

    [Fact]
    public void ManyFramesAreNotAllNamed()
    {
        using var xen = new FakeXen(0x20000) { FrameError = frame => frame % 2 == 0 ? -Errno.EINVAL : 0 };
        Assert.Contains("10 of 20, 0x40000, 0x40002, 0x40004, 0x40006, 0x40008, 0x4000a, 0x4000c, 0x4000e, ....", Assert.Throws<SyscallException>(() => Foreign(xen, 20 * 4096)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void ADomainThatIsMissingIsNamed()
    {
        using var xen = new FakeXen(0x10000) { FrameError = static _ => -Errno.ESRCH };
        var failure = Assert.Throws<SyscallException>(() => Foreign(xen, 0x2000));
        Assert.Equal((GuestMemoryError.DomainNotFound, Errno.ESRCH), (failure.Error, failure.ErrorCode));
        Assert.Contains("domain 5", failure.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(Errno.EPERM)]
    [InlineData(Errno.EFAULT)]
    [InlineData(Errno.ENOENT)]
    public void AnErrorOfTheRequestItselfIsOne(int error)
    {
        using var xen = new FakeXen(0x10000) { FailAt = 1, Error = error };
        var before = FakeXen.Mappings();
        var failure = Assert.Throws<SyscallException>(() => Foreign(xen, 0x2000));
        Assert.Equal((GuestMemoryError.SyscallFailed, error, "ioctl(IOCTL_PRIVCMD_MMAPBATCH_V2)"), (failure.Error, failure.ErrorCode, failure.Function));
        Assert.Equal(before, FakeXen.Mappings());
    }

    /// <summary>Frames that are paged out come later: only those are asked for again, after pauses that grow.</summary>
    [Fact]
    public void FramesThatArePagedOutAreAskedForAgain()
    {
        var missing = new HashSet<ulong> { 0x40001, 0x40002, 0x40004 };
        using var xen = new FakeXen(0x10000) { FrameError = frame => missing.Contains(frame) ? -Errno.ENOENT : 0 };
        xen.OnPause = () =>
        {
            if (xen.Pauses.Count == 2) missing.Remove(0x40001);
            if (xen.Pauses.Count == 4) missing.Clear();
        };
        using var region = Foreign(xen, 0x5000);
        Assert.Equal(
            [
                [0x40000, 0x40001, 0x40002, 0x40003, 0x40004],
                [0x40001, 0x40002], [0x40004],
                [0x40001, 0x40002], [0x40004],
                [0x40002], [0x40004],
                [0x40002], [0x40004],
            ], xen.Frames);
        Assert.Equal([0.1, 0.2, 0.4, 0.8], xen.Pauses.Select(static pause => pause.TotalMilliseconds));
        // A part of the mapping, at its place.
        Assert.Equal(new GuestMemoryRegion(region, 0x40000000).GetHostAddress(default) + 0x1000, BitConverter.ToUInt64(xen.Requests[1].Bytes, 8));
        Assert.Equal(new GuestMemoryRegion(region, 0x40000000).GetHostAddress(default) + 0x4000, BitConverter.ToUInt64(xen.Requests[2].Bytes, 8));
    }

    [Fact]
    public void FramesThatStayPagedOutAreAnError()
    {
        using var xen = new FakeXen(0x10000) { FrameError = static frame => frame == 0x40001 ? -Errno.ENOENT : 0 };
        var failure = Assert.Throws<SyscallException>(() => Foreign(xen, 0x2000));
        Assert.Equal((GuestMemoryError.FrameNotMapped, Errno.ENOENT, 0x40001000UL), (failure.Error, failure.ErrorCode, failure.Address));
        Assert.Contains("paged out", failure.Message, StringComparison.Ordinal);
        Assert.InRange(xen.Pauses.Aggregate(TimeSpan.Zero, static (sum, pause) => sum + pause), TimeSpan.FromSeconds(10), TimeSpan.FromSeconds(11));
        Assert.Equal(TimeSpan.FromMilliseconds(100), xen.Pauses.Max());
    }

    /// <summary>A frame may be gone for good by the time it would come.</summary>
    [Fact]
    public void AFrameThatFailsLaterIsAnError()
    {
        using var xen = new FakeXen(0x10000);
        xen.FrameError = frame => frame != 0x40001 ? 0 : xen.Pauses.Count == 0 ? -Errno.ENOENT : -Errno.EINVAL;
        var failure = Assert.Throws<SyscallException>(() => Foreign(xen, 0x2000));
        Assert.Equal((GuestMemoryError.FrameNotMapped, Errno.EINVAL, 1), (failure.Error, failure.ErrorCode, xen.Pauses.Count));
    }

    [Fact]
    public void TheWaitForFramesCanBeEnded()
    {
        using var cancel = new CancellationTokenSource();
        using var xen = new FakeXen(0x10000) { FrameError = static _ => -Errno.ENOENT };
        xen.OnPause = () =>
        {
            if (xen.Pauses.Count == 3) cancel.Cancel();
        };
        var before = FakeXen.Mappings();
        Assert.Throws<OperationCanceledException>(() => XenMmapRegion.FromRange(Range(xen, MmapXenFlags.Foreign, 0x40000000, 0x2000), xen, cancel.Token));
        Assert.Equal((3, before), (xen.Pauses.Count, FakeXen.Mappings()));
    }

    [Fact]
    public void AGrantThatCannotBeMappedGoesBack()
    {
        using var xen = new FakeXen(0x10000) { FailAt = 1, FailMmap = true };
        var failure = Assert.Throws<SyscallException>(() => Granted(xen, 0x2000, MmapXenFlags.Grant));
        Assert.Equal((GuestMemoryError.GrantNotMapped, "mmap", Errno.EINVAL), (failure.Error, failure.Function, failure.ErrorCode));
        Assert.Equal([XenApi.IOCTL_GNTDEV_MAP_GRANT_REF, XenApi.IOCTL_GNTDEV_UNMAP_GRANT_REF], xen.Requests.Select(static request => request.Request));
        Assert.Equal(0, xen.Granted);
    }

    [Fact]
    public void AReferenceThatIsRefusedIsAnError()
    {
        using var xen = new FakeXen(0x10000) { FailAt = 1 };
        var failure = Assert.Throws<SyscallException>(() => Granted(xen, 0x2000, MmapXenFlags.Grant));
        Assert.Equal((GuestMemoryError.GrantNotMapped, "ioctl(IOCTL_GNTDEV_MAP_GRANT_REF)", 0), (failure.Error, failure.Function, xen.Granted));
        Assert.Contains("2 pages that domain 5 grants, from reference 1 on", failure.Message, StringComparison.Ordinal);
    }

    /// <summary>Memory first, then its grant: gntdev takes a grant for gone while it is mapped.</summary>
    [Theory]
    [InlineData(MmapXenFlags.Grant)]
    [InlineData(OnDemand)]
    public void AGrantGoesBackAfterItsMapping(MmapXenFlags flags)
    {
        using var xen = new FakeXen(0x10000);
        var before = FakeXen.Mappings();
        var unmapped = 0;
        xen.OnRequest = request =>
        {
            if (request != XenApi.IOCTL_GNTDEV_UNMAP_GRANT_REF) return;
            Assert.Equal(before, FakeXen.Mappings());
            unmapped++;
        };
        using (var region = Granted(xen, 0x2000, flags)) region.AsVolatileSlice().WriteObject(0x1000, 7UL);
        Assert.Equal((1, 0), (unmapped, xen.Granted));
    }

    /// <summary>The address of a system call stays mapped until it is let go, whatever happens to the region.</summary>
    [Theory]
    [InlineData(MmapXenFlags.Foreign)]
    [InlineData(MmapXenFlags.Grant)]
    [InlineData(OnDemand)]
    public unsafe void AGuardKeepsTheMemory(MmapXenFlags flags)
    {
        using var xen = new FakeXen(0x10000);
        var region = flags.IsForeign() ? Foreign(xen, 0x2000) : Granted(xen, 0x2000, flags);
        var slice = region.AsVolatileSlice();
        slice.WriteObject(0x1008, 7UL);
        using (var guard = slice.Subslice(0x1008, 8).PtrGuard(MemoryProtection.Read))
        {
            region.Dispose();
            Assert.Equal((7UL, flags.IsGrant() ? 1 : 0), (*(ulong*)guard.Pointer, xen.Granted));
        }

        Assert.Equal(0, xen.Granted);
        Assert.Equal(GuestMemoryError.RegionDisposed, Failure.Of(() => slice.PtrGuard().Dispose()));
        region.Dispose();
    }

    /// <summary>What was forgotten is found by the collector, the device last.</summary>
    [Theory]
    [InlineData(MmapXenFlags.Foreign)]
    [InlineData(MmapXenFlags.Grant)]
    public void AForgottenRegionIsUnmapped(MmapXenFlags flags)
    {
        using var xen = new FakeXen(0x10000);
        var before = FakeXen.Mappings();
        Forget(xen, flags);
        Host.Until(() =>
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            return FakeXen.Mappings() == before && xen.Granted == 0;
        });

        [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
        static void Forget(FakeXen xen, MmapXenFlags flags) => Assert.NotNull(flags.IsForeign() ? Foreign(xen, 0x2000) : Granted(xen, 0x2000, flags));
    }

    /// <summary>A thousand maps and unmaps leave nothing behind.</summary>
    [Theory]
    [InlineData(MmapXenFlags.Foreign)]
    [InlineData(MmapXenFlags.Grant)]
    [InlineData(OnDemand)]
    public void NothingIsLeftOfManyRegions(MmapXenFlags flags)
    {
        using var xen = new FakeXen(0x10000);
        var before = (FakeXen.Mappings(), Directory.GetFiles("/proc/self/fd").Length);
        for (var i = 0; i < 1000; i++)
        {
            using var region = flags.IsForeign() ? Foreign(xen, 0x2000) : Granted(xen, 0x2000, flags);
            region.AsVolatileSlice().WriteObject(0x1008, (ulong)i);
        }

        Assert.Equal((0, before.Item1), (xen.Granted, FakeXen.Mappings()));
        Host.Until(() => Directory.GetFiles("/proc/self/fd").Length <= before.Length + 5);
    }

    /// <summary>A page that Xen does not map is an error of each access, at any of those that an operation is made of.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void EveryAccessOnDemandFailsAtEachMapping(bool byMmap)
    {
        using var any = new FakeXen(0x10000);
        var count = Each(any).Length;
        for (var each = 0; each < count; each++)
        {
            for (var failAt = 1; ; failAt++)
            {
                using var xen = new FakeXen(0x10000) { FailMmap = byMmap };
                var (name, access) = Each(xen)[each];
                xen.FailAt = failAt;
                var failure = Record.Exception(access);
                Assert.Equal(0, xen.Granted);
                if (xen.FailAt > 0)
                {
                    // The operation has no so many accesses.
                    Assert.True(failure is null, $"{name}: {failure}");
                    Assert.True(failAt > 1, $"{name} accessed nothing");
                    break;
                }

                // Elements that cannot be had one by one are copied together, which asks for them once more.
                if (failure is not null || !name.Contains("Copy", StringComparison.Ordinal))
                {
                    var error = Assert.IsType<GuestMemoryException>(failure);
                    Assert.True(error.Error == GuestMemoryError.PageNotAccessible, $"{name}: {error}");
                    Assert.Contains("domain 5 does not grant it to this domain", error.Message, StringComparison.Ordinal);
                }

                // Once more, and nothing is left of it.
                access();
                Assert.Equal(0, xen.Granted);
            }
        }

        static (string Name, Action Access)[] Each(FakeXen xen) => EveryAccess.To(GuestMemoryMmap.FromRegions([new GuestMemoryRegion(Granted(xen, 0x2000, OnDemand), 0x8000000000001000)]));
    }

    /// <summary>Each access asks for what it does, and for no more.</summary>
    [Theory]
    [InlineData(MmapXenFlags.Foreign)]
    [InlineData(MmapXenFlags.Grant)]
    [InlineData(OnDemand)]
    public void MemoryThatMayOnlyBeReadIsOnlyRead(MmapXenFlags flags)
    {
        using var xen = new FakeXen(0x10000);
        using var region = XenMmapRegion.FromRange(Range(xen, flags, 0x1000, 0x2000) with { Protection = MemoryProtection.Read }, xen);
        var slice = region.AsVolatileSlice();
        Assert.Equal((0UL, 0UL), (slice.ReadObject<ulong>(8), slice.Load<ulong>(8, AtomicOrdering.SeqCst)));
        Assert.Equal(2, slice.CopyTo(new ulong[2]));
        foreach (var write in (Action[])
        [
            () => slice.WriteObject(8, 1UL),
            () => slice.Write(0, new byte[0x2000]),
            () => slice.Store(8, 1UL, AtomicOrdering.SeqCst),
            () => slice.CopyFrom<ulong>([1, 2]),
            () => slice.GetAtomicRef<ulong>(8).FetchAdd(1),
        ])
        {
            var failure = Assert.Throws<GuestMemoryException>(write);
            Assert.Equal(GuestMemoryError.PageNotAccessible, failure.Error);
            Assert.Contains("its protection is Read", failure.Message, StringComparison.Ordinal);
        }

        Assert.Equal(0UL, slice.ReadObject<ulong>(8));
    }

    /// <summary>A long copy on demand goes by pieces, and the pieces begin with pages.</summary>
    [Fact]
    public void ALongAccessOnDemandIsOneOfPieces()
    {
        using var xen = new FakeXen(0x301000);
        using var region = Granted(xen, 0x300000, OnDemand);
        var (bytes, back) = (new byte[0x200800], new byte[0x200800]);
        new Random(3).NextBytes(bytes);
        region.GetSlice(0x800, (ulong)bytes.Length).WriteExact(0, bytes);
        Assert.Equal([(256, 1), (256, 257), (1, 513)], xen.Requests.Where(static request => request.Request == XenApi.IOCTL_GNTDEV_MAP_GRANT_REF)
            .Select(static request => (BitConverter.ToInt32(request.Bytes), BitConverter.ToInt32(request.Bytes, 20))));
        region.GetSlice(0x800, (ulong)bytes.Length).ReadExact(0, back);
        Assert.Equal(bytes, back);
    }

    /// <summary>Regions that share pages of one domain, whatever else they share.</summary>
    [Theory]
    [InlineData(MmapXenFlags.Foreign, 0x1000UL, 0x2000UL, 5U, MmapXenFlags.Foreign, 0x2000UL, 0x1000UL, 5U, true)]
    [InlineData(MmapXenFlags.Foreign, 0x1000UL, 0x1000UL, 5U, MmapXenFlags.Foreign, 0x2000UL, 0x1000UL, 5U, false)]
    [InlineData(MmapXenFlags.Foreign, 0x2000UL, 0x1000UL, 5U, MmapXenFlags.Foreign, 0x1000UL, 0x1001UL, 5U, true)]
    [InlineData(MmapXenFlags.Foreign, 0x1000UL, 0x2000UL, 5U, MmapXenFlags.Foreign, 0x2000UL, 0x1000UL, 6U, false)]
    [InlineData(MmapXenFlags.Foreign, 0x1000UL, 0x2000UL, 5U, MmapXenFlags.Grant, 0x1000UL, 0x1000UL, 5U, false)]
    [InlineData(MmapXenFlags.Grant, 0x1000UL, 0x2000UL, 5U, MmapXenFlags.Foreign, 0x1000UL, 0x1000UL, 5U, false)]
    [InlineData(MmapXenFlags.Grant, 0x1000UL, 0x2000UL, 5U, OnDemand, 0x2000UL, 0x1000UL, 5U, true)]
    [InlineData(OnDemand, 0x3000UL, 0x2000UL, 5U, OnDemand, 0x1000UL, 0x2000UL, 5U, false)]
    public void RegionsThatShowTheSamePagesOverlap(MmapXenFlags flags, ulong address, ulong size, uint domain, MmapXenFlags otherFlags, ulong otherAddress, ulong otherSize, uint otherDomain, bool overlap)
    {
        using var xen = new FakeXen(0x10000);
        using var region = (XenMmapRegion)XenMmapRegion.FromRange(Range(xen, flags, address, size) with { XenData = domain }, xen);
        using var other = (XenMmapRegion)XenMmapRegion.FromRange(Range(xen, otherFlags, otherAddress, otherSize) with { XenData = otherDomain }, xen);
        Assert.Equal((overlap, overlap, true), (region.FdsOverlap(other), other.FdsOverlap(region), region.FdsOverlap(region)));
        // Another device, though of one kind.
        using var elsewhere = new FakeXen(0x10000);
        using var foreign = (XenMmapRegion)XenMmapRegion.FromRange(Range(elsewhere, flags, address, size) with { XenData = domain }, elsewhere);
        Assert.False(region.FdsOverlap(foreign));
    }

    [Fact]
    public void ReferencesThatAreListedOverlapByTheirNumbers()
    {
        using var xen = new FakeXen(0x10000);
        using var listed = (XenMmapRegion)XenMmapRegion.FromRange(Range(xen, OnDemand, 0, 0x3000) with { GrantReferences = [9, 4, 7] }, xen);
        using var run = (XenMmapRegion)Granted(xen, 0x3000, OnDemand);
        using var other = (XenMmapRegion)XenMmapRegion.FromRange(Range(xen, OnDemand, 0x4000, 0x1000), xen);
        Assert.Equal((false, true, true), (listed.FdsOverlap(run), listed.FdsOverlap(other), other.FdsOverlap(listed)));
    }

    /// <summary>A host without Xen says so, and what was looked for.</summary>
    [Fact]
    public void AHostWithoutXenSaysSo()
    {
        Assert.SkipWhen(XenDevice.IsDomain(), "this host is a Xen domain");
        foreach (var (open, path) in ((Func<Microsoft.Win32.SafeHandles.SafeFileHandle>, string)[])[(XenDevice.OpenPrivcmd, "/dev/xen/privcmd"), (XenDevice.OpenGntdev, "/dev/xen/gntdev")])
        {
            var failure = Assert.Throws<SyscallException>(open);
            Assert.Equal(GuestMemoryError.XenUnsupported, failure.Error);
            Assert.Contains($"Opening {path} failed", failure.Message, StringComparison.Ordinal);
            Assert.Contains("This host is not a Xen domain: there is no /proc/xen and no /dev/xen, and /sys/hypervisor/type", failure.Message, StringComparison.Ordinal);
        }
    }

    private static MmapRange Range(FakeXen xen, MmapXenFlags flags, ulong address, ulong size) => new(size, address, flags, 5) { File = xen.Device };

    private static VolatileMemory Foreign(FakeXen xen, ulong size) => XenMmapRegion.FromRange(Range(xen, MmapXenFlags.Foreign, 0x40000000, size), xen);

    private static VolatileMemory Granted(FakeXen xen, ulong size, MmapXenFlags flags) => XenMmapRegion.FromRange(Range(xen, flags, 0x1000, size), xen);
}
