using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>What tests need of the host, asked once each; the reasons name the package where one helps.</summary>
public static class Needs
{
    public const string CompilerReason = "needs a C compiler ('apt-get install gcc libc6-dev')";
    public const string UserfaultfdReason = "needs a userfaultfd: root, vm.unprivileged_userfaultfd=1, or rights on /dev/userfaultfd";
    public const string TrackingReason = $"needs Linux 6.7 or later (PAGEMAP_SCAN, UFFD_FEATURE_WP_ASYNC), and {CompilerReason}";
    public const string KvmReason = "needs KVM: /dev/kvm (the kernel modules kvm and kvm_intel or kvm_amd) and the right to open it (the group kvm)";
    public const string LiveGuestReason = $"needs Linux 6.4 or later (UFFD_FEATURE_WP_UNPOPULATED), {CompilerReason}, {UserfaultfdReason}, and {KvmReason}, on x86-64";
    public const string GuestReason = $"runs instructions of x86-64 in a guest: {KvmReason}";

    private static readonly Lazy<bool> s_compiler = new(() => IsOnPath("cc"));
    private static readonly Lazy<bool> s_nginx = new(static () => IsOnPath("nginx"));
    private static readonly Lazy<bool> s_qemuTools = new(() => IsOnPath("qemu-io") && IsOnPath("qemu-img") && IsOnPath("qemu-storage-daemon"));
    private static readonly Lazy<bool> s_userfaultfd = new(() => Interop.Userfaultfd.TryProbe(out _) == 0);
    private static readonly Lazy<bool> s_kvm = new(() => HostSupport.Probe().First(feature => feature.Feature == "Kvm").Supported);

    public static bool Root => Users.Current == 0;

    public static bool HugePages => GuestMemory.Core.HugePages.Pools().Count > 0;

    public static bool EmptyPool => EmptyPoolPageSize != 0;

    /// <summary>The size of the largest huge pages that are not there, in bytes; 0 where every pool has some.</summary>
    public static ulong EmptyPoolPageSize =>
        GuestMemory.Core.HugePages.Pools().LastOrDefault(static pool => GuestMemory.Core.HugePages.Available(pool.PageSize) == 0)?.PageSize ?? 0;

    public static bool Compiler => s_compiler.Value;

    public static bool Nginx => s_nginx.Value;

    public static bool QemuTools => s_qemuTools.Value;

    public static bool OtherUser => Root && Compiler;

    public static bool Userfaultfd => s_userfaultfd.Value;

    public static bool Tracking => Compiler && Interop.Pagemap.TryProbe() == 0 && Interop.Userfaultfd.TryProbe(out var features) == 0 && (features & Interop.Userfaultfd.UFFD_FEATURE_WP_ASYNC) != 0;

    public static bool ManyVms => File.Exists("/usr/bin/prlimit") && Userfaultfd
        && (ResourceLimit.TryGet(ResourceLimit.RLIMIT_NOFILE, out var limit) != 0 || limit.rlim_max >= 4000);

    public static bool Kvm => s_kvm.Value;

    public static bool Guest => Kvm && RuntimeInformation.ProcessArchitecture == Architecture.X64;

    public static bool LiveGuest => Guest && Compiler && Interop.Userfaultfd.TryProbe(out var features) == 0 && (features & Interop.Userfaultfd.UFFD_FEATURE_WP_UNPOPULATED) != 0;

    public static bool ServedGuest => Guest && Userfaultfd;

    private static bool IsOnPath(string program) => Environment.GetEnvironmentVariable("PATH")!.Split(':').Any(folder => File.Exists(Path.Combine(folder, program)));
}
