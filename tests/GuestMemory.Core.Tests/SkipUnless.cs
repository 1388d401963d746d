using System.Runtime.CompilerServices;

namespace GuestMemory.Core.Tests;

/// <summary>A test that needs root.</summary>
public sealed class RootFactAttribute : FactAttribute
{
    public RootFactAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = ("needs root, to set the size of the pool of huge pages", typeof(Needs), nameof(Needs.Root));
}

/// <summary>A test that maps huge pages, but touches none.</summary>
public sealed class HugePagesFactAttribute : FactAttribute
{
    public HugePagesFactAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = ("needs a kernel with huge pages (CONFIG_HUGETLBFS)", typeof(Needs), nameof(Needs.HugePages));
}

/// <summary>A test that needs a pool of huge pages without any.</summary>
public sealed class EmptyPoolFactAttribute : FactAttribute
{
    public EmptyPoolFactAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = ("needs a kernel with huge pages, and an empty pool of one size", typeof(Needs), nameof(Needs.EmptyPool));
}

/// <summary>A test that needs a C compiler.</summary>
public sealed class CompilerFactAttribute : FactAttribute
{
    public CompilerFactAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = (Needs.CompilerReason, typeof(Needs), nameof(Needs.Compiler));
}

/// <summary>A test with data that needs a C compiler.</summary>
public sealed class CompilerTheoryAttribute : TheoryAttribute
{
    public CompilerTheoryAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = (Needs.CompilerReason, typeof(Needs), nameof(Needs.Compiler));
}

/// <summary>A test in which a C program is another user.</summary>
public sealed class OtherUserFactAttribute : FactAttribute
{
    public OtherUserFactAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = ($"needs root, to become another user, and {Needs.CompilerReason}", typeof(Needs), nameof(Needs.OtherUser));
}

/// <summary>A test beside QEMU's programs for disks.</summary>
public sealed class QemuFactAttribute : FactAttribute
{
    public QemuFactAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = ("needs qemu-io, qemu-img and qemu-storage-daemon ('apt-get install qemu-utils qemu-system-common')", typeof(Needs), nameof(Needs.QemuTools));
}

/// <summary>A test beside a real web server.</summary>
public sealed class NginxFactAttribute : FactAttribute
{
    public NginxFactAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = ("needs nginx ('apt-get install nginx-light')", typeof(Needs), nameof(Needs.Nginx));
}

/// <summary>A test that needs a userfaultfd.</summary>
public sealed class UffdFactAttribute : FactAttribute
{
    public UffdFactAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = (Needs.UserfaultfdReason, typeof(Needs), nameof(Needs.Userfaultfd));
}

/// <summary>A test with data that needs a userfaultfd.</summary>
public sealed class UffdTheoryAttribute : TheoryAttribute
{
    public UffdTheoryAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = (Needs.UserfaultfdReason, typeof(Needs), nameof(Needs.Userfaultfd));
}

/// <summary>A test that tracks what another process writes.</summary>
public sealed class TrackingFactAttribute : FactAttribute
{
    public TrackingFactAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = (Needs.TrackingReason, typeof(Needs), nameof(Needs.Tracking));
}

/// <summary>A test with data that tracks what another process writes.</summary>
public sealed class TrackingTheoryAttribute : TheoryAttribute
{
    public TrackingTheoryAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = (Needs.TrackingReason, typeof(Needs), nameof(Needs.Tracking));
}

/// <summary>A test that needs userfaultfds, prlimit(1), and descriptors for hundreds of VMs.</summary>
public sealed class ManyVmsFactAttribute : FactAttribute
{
    public ManyVmsFactAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = ($"needs prlimit ('apt-get install util-linux'), 4000 open files (ulimit -Hn), and {Needs.UserfaultfdReason}", typeof(Needs), nameof(Needs.ManyVms));
}

/// <summary>A test that needs KVM.</summary>
public sealed class KvmFactAttribute : FactAttribute
{
    public KvmFactAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = (Needs.KvmReason, typeof(Needs), nameof(Needs.Kvm));
}

/// <summary>Tests with data that need KVM.</summary>
public sealed class KvmTheoryAttribute : TheoryAttribute
{
    public KvmTheoryAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = (Needs.KvmReason, typeof(Needs), nameof(Needs.Kvm));
}

/// <summary>A test that runs instructions of x86-64 in a guest.</summary>
public sealed class GuestFactAttribute : FactAttribute
{
    public GuestFactAttribute(bool userfault = false, [CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = userfault
            ? ($"{Needs.GuestReason}; {Needs.UserfaultfdReason}", typeof(Needs), nameof(Needs.ServedGuest))
            : (Needs.GuestReason, typeof(Needs), nameof(Needs.Guest));
}

/// <summary>Tests with data that run instructions of x86-64 in a guest.</summary>
public sealed class GuestTheoryAttribute : TheoryAttribute
{
    public GuestTheoryAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = (Needs.GuestReason, typeof(Needs), nameof(Needs.Guest));
}

/// <summary>A test that runs a guest that is compiled, and exports it while it runs.</summary>
public sealed class LiveGuestFactAttribute : FactAttribute
{
    public LiveGuestFactAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = (Needs.LiveGuestReason, typeof(Needs), nameof(Needs.LiveGuest));
}

/// <summary>Tests with data of the same.</summary>
public sealed class LiveGuestTheoryAttribute : TheoryAttribute
{
    public LiveGuestTheoryAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        (Skip, SkipType, SkipUnless) = (Needs.LiveGuestReason, typeof(Needs), nameof(Needs.LiveGuest));
}
