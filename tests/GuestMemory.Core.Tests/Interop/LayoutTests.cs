using System.Globalization;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text.RegularExpressions;

namespace GuestMemory.Core.Tests;

/// <summary>Every constant and structure of Interop against the C headers of this machine.</summary>
public sealed partial class LayoutTests(ITestOutputHelper output)
{
    private static readonly Dictionary<Type, string> s_structs = new()
    {
        [typeof(UffdioApi)] = "uffdio_api",
        [typeof(UffdioRange)] = "uffdio_range",
        [typeof(UffdioRegister)] = "uffdio_register",
        [typeof(UffdioCopy)] = "uffdio_copy",
        [typeof(UffdioZeropage)] = "uffdio_zeropage",
        [typeof(UffdioWriteprotect)] = "uffdio_writeprotect",
        [typeof(PageRegion)] = "page_region",
        [typeof(UffdMsg)] = "uffd_msg",
        [typeof(SockAddrUn)] = "sockaddr_un",
        [typeof(MsgHdr)] = "msghdr",
        [typeof(CmsgHdr)] = "cmsghdr",
        [typeof(UCred)] = "ucred",
        [typeof(TimeVal)] = "timeval",
        [typeof(TimeSpec)] = "timespec",
        [typeof(RLimit)] = "rlimit",
        [typeof(IoVec)] = "iovec",
        [typeof(PollFd)] = "pollfd",
        [typeof(FLock)] = "flock",
        [typeof(Statx)] = "statx",
        [typeof(StatxTimestamp)] = "statx_timestamp",
        [typeof(Passwd)] = "passwd",
        [typeof(SockFilter)] = "sock_filter",
        [typeof(SockFprog)] = "sock_fprog",
        [typeof(UserCapHeader)] = "__user_cap_header_struct",
        [typeof(UserCapData)] = "__user_cap_data_struct",
        [typeof(Interop.Group)] = "group",
        [typeof(SigAction)] = "sigaction",
        [typeof(PmScanArg)] = "pm_scan_arg",
        [typeof(KvmUserspaceMemoryRegion)] = "kvm_userspace_memory_region",
        [typeof(KvmDirtyLog)] = "kvm_dirty_log",
        [typeof(KvmClearDirtyLog)] = "kvm_clear_dirty_log",
        [typeof(KvmDirtyGfn)] = "kvm_dirty_gfn",
        [typeof(KvmEnableCap)] = "kvm_enable_cap",
        [typeof(KvmIoeventfd)] = "kvm_ioeventfd",
        [typeof(KvmRegs)] = "kvm_regs",
        [typeof(KvmSegment)] = "kvm_segment",
        [typeof(KvmDtable)] = "kvm_dtable",
        [typeof(KvmSregs)] = "kvm_sregs",
        [typeof(KvmRun)] = "kvm_run",
        [typeof(PrivcmdMmapbatchV2)] = "privcmd_mmapbatch_v2",
        [typeof(IoctlGntdevGrantRef)] = "ioctl_gntdev_grant_ref",
        [typeof(IoctlGntdevMapGrantRef)] = "ioctl_gntdev_map_grant_ref",
        [typeof(IoctlGntdevUnmapGrantRef)] = "ioctl_gntdev_unmap_grant_ref",
        [typeof(VhostVringState)] = "vhost_vring_state",
        [typeof(VhostVringAddr)] = "vhost_vring_addr",
        [typeof(VhostMemoryRegion)] = "vhost_memory_region",
        [typeof(VringDesc)] = "vring_desc",
        [typeof(VringUsedElem)] = "vring_used_elem",
        [typeof(VirtioBlkOuthdr)] = "virtio_blk_outhdr",
        [typeof(VirtioBlkDiscardWriteZeroes)] = "virtio_blk_discard_write_zeroes",
        [typeof(VirtioBlkConfig)] = "virtio_blk_config",
        [typeof(IoUringSqe)] = "io_uring_sqe",
        [typeof(IoUringCqe)] = "io_uring_cqe",
        [typeof(IoSqringOffsets)] = "io_sqring_offsets",
        [typeof(IoCqringOffsets)] = "io_cqring_offsets",
        [typeof(IoUringParams)] = "io_uring_params",
        [typeof(XenDomainInfo)] = "xen_domctl_getdomaininfo",
    };

    private static readonly Dictionary<string, string> s_unions = new(StringComparer.Ordinal)
    {
        ["pagefault_flags"] = "arg.pagefault.flags",
        ["pagefault_address"] = "arg.pagefault.address",
        ["pagefault_ptid"] = "arg.pagefault.feat.ptid",
        ["fork_ufd"] = "arg.fork.ufd",
        ["remap_from"] = "arg.remap.from",
        ["remap_to"] = "arg.remap.to",
        ["remap_len"] = "arg.remap.len",
        ["remove_start"] = "arg.remove.start",
        ["remove_end"] = "arg.remove.end",
        ["hw_hardware_exit_reason"] = "hw.hardware_exit_reason",
        ["io_direction"] = "io.direction",
        ["io_size"] = "io.size",
        ["io_port"] = "io.port",
        ["io_count"] = "io.count",
        ["io_data_offset"] = "io.data_offset",
        ["mmio_phys_addr"] = "mmio.phys_addr",
        ["mmio_data"] = "mmio.data",
        ["mmio_len"] = "mmio.len",
        ["mmio_is_write"] = "mmio.is_write",
        ["internal_suberror"] = "internal.suberror",
    };

    // Newer than the headers of some distributions. Their numbers are checked by the formula of <asm-generic/ioctl.h> below.
    private static readonly string[] s_mayBeTooNew = ["SO_PEERPIDFD", "KVM_DIRTY_LOG_PAGE_OFFSET", "UFFDIO_POISON", "PAGEMAP_SCAN", "PAGE_IS_PRESENT", "PAGE_IS_WRITTEN", "PAGE_IS_SWAPPED", "PM_SCAN_CHECK_WPASYNC", "PM_SCAN_WP_MATCHING", "UFFDIO_CONTINUE_MODE_WP", "UFFD_FEATURE_WP_UNPOPULATED", "UFFD_FEATURE_WP_ASYNC", "UFFD_FEATURE_POISON", "PR_SET_VMA", "PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG"];

    // The state of a vCPU and the places of registers, which only x86-64 has here.
    private static readonly HashSet<string> s_x86 = new(StringComparer.Ordinal)
    {
        "KVM_GET_SUPPORTED_CPUID", "KVM_GET_REGS", "KVM_SET_REGS", "KVM_GET_SREGS", "KVM_SET_SREGS", "KVM_SET_CPUID2",
        "RAX", "RDI", "ORIG_RAX", "RIP",
        nameof(KvmRegs), nameof(KvmSegment), nameof(KvmDtable), nameof(KvmSregs),
    };

    private static bool IsHere(MemberInfo member) => RuntimeInformation.ProcessArchitecture == Architecture.X64 || !s_x86.Contains(member.Name);

    private static IEnumerable<Type> InteropTypes => typeof(Errno).Assembly.GetTypes().Where(type => type.Namespace == typeof(Errno).Namespace);

    [CompilerFact]
    public void EveryConstantEqualsTheHeaders()
    {
        var headers = Headers();
        var count = 0;
        foreach (var constant in InteropTypes.SelectMany(type => type.GetFields(BindingFlags.Static | BindingFlags.Public | BindingFlags.NonPublic | BindingFlags.DeclaredOnly))
            .Where(field => field.IsLiteral && CName().IsMatch(field.Name) && IsHere(field)))
        {
            if (!headers.TryGetValue(constant.Name, out var expected))
            {
                Assert.True(s_mayBeTooNew.Contains(constant.Name, StringComparer.Ordinal), $"{constant.Name} is not in layouts.c");
                output.WriteLine($"{constant.Name} is not in the headers here");
                continue;
            }

            count++;
            Assert.True(expected == Bits(constant.GetRawConstantValue()!), $"{constant.Name}: header 0x{expected:x}, ours 0x{Bits(constant.GetRawConstantValue()!):x}");
        }

        Assert.InRange(count, 100, int.MaxValue);
    }

    [CompilerFact]
    public void EveryStructureEqualsTheHeaders()
    {
        var headers = Headers();
        foreach (var type in InteropTypes.Where(type => type.IsValueType && !type.IsEnum && !type.IsByRefLike && !type.IsNested && IsHere(type)))
        {
            Assert.True(s_structs.TryGetValue(type, out var name), $"{type.Name} is not in the list of structures");
            if (!headers.TryGetValue($"sizeof.{name}", out var size))
            {
                Assert.Contains((name, Marshal.SizeOf(type)), new[] { ("pm_scan_arg", 96), ("page_region", 24), ("xen_domctl_getdomaininfo", 112) });
                continue;
            }

            Assert.True((int)size == Marshal.SizeOf(type), $"sizeof {name}: header {size}, ours {Marshal.SizeOf(type)}");
            foreach (var field in type.GetFields(BindingFlags.Instance | BindingFlags.Public))
            {
                var member = (type == typeof(UffdMsg) || type == typeof(KvmRun)) && s_unions.TryGetValue(field.Name, out var union) ? union : field.Name;
                Assert.True(headers.TryGetValue($"offsetof.{name}.{member}", out var offset), $"{name}.{member} is not in layouts.c");
                Assert.True((int)offset == Marshal.OffsetOf(type, field.Name).ToInt32(), $"offsetof {name}.{member}: header {offset}, ours {Marshal.OffsetOf(type, field.Name)}");
            }
        }
    }

    /// <summary>struct epoll_event is declared by its layout, which differs between the architectures.</summary>
    [CompilerFact]
    public void EpollEventsEqualTheHeaders()
    {
        var headers = Headers();
        Assert.Equal(0UL, headers["offsetof.epoll_event.events"]);
        Assert.Equal(((int)headers["sizeof.epoll_event"], (int)headers["offsetof.epoll_event.data"]), Epoll.Layout);
    }

    [Fact]
    public void IoctlNumbersFollowTheFormula()
    {
        Assert.Equal(Userfaultfd.UFFDIO_API, Ioc(3, 0xAA, 0x3F, Marshal.SizeOf<UffdioApi>()));
        Assert.Equal(Userfaultfd.UFFDIO_REGISTER, Ioc(3, 0xAA, 0, Marshal.SizeOf<UffdioRegister>()));
        Assert.Equal(Userfaultfd.UFFDIO_WAKE, Ioc(2, 0xAA, 2, Marshal.SizeOf<UffdioRange>()));
        Assert.Equal(Userfaultfd.UFFDIO_COPY, Ioc(3, 0xAA, 3, Marshal.SizeOf<UffdioCopy>()));
        Assert.Equal(Userfaultfd.UFFDIO_ZEROPAGE, Ioc(3, 0xAA, 4, Marshal.SizeOf<UffdioZeropage>()));
        Assert.Equal(Userfaultfd.UFFDIO_POISON, Ioc(3, 0xAA, 8, Marshal.SizeOf<UffdioZeropage>()));
        Assert.Equal(Userfaultfd.USERFAULTFD_IOC_NEW, Ioc(0, 0xAA, 0, 0));
        Assert.Equal(KvmApi.KVM_SET_USER_MEMORY_REGION, Ioc(1, 0xAE, 0x46, Marshal.SizeOf<KvmUserspaceMemoryRegion>()));
        Assert.Equal(KvmApi.KVM_CLEAR_DIRTY_LOG, Ioc(3, 0xAE, 0xC0, Marshal.SizeOf<KvmClearDirtyLog>()));
        Assert.Equal(Pagemap.PAGEMAP_SCAN, Ioc(3, 'f', 16, Marshal.SizeOf<PmScanArg>()));
    }

    [CompilerFact]
    public void Aarch64SystemCallNumberEqualsTheGenericTable()
    {
        const string Table = "/usr/include/asm-generic/unistd.h";
        var match = Regex.Match(File.ReadAllText(Table), @"#define __NR_userfaultfd (?<number>\d+)", RegexOptions.CultureInvariant, TimeSpan.FromSeconds(1));
        Assert.Equal("282", match.Groups["number"].Value);
    }

    /// <summary>The numbers of this machine's architecture by its headers, those of aarch64 by the generic table.</summary>
    [CompilerFact]
    public void SystemCallNumbersEqualTheHeaders()
    {
        var headers = Headers();
        foreach (var name in SystemCalls.Names)
        {
            var isHere = headers.TryGetValue($"call.{name}", out var number);
            Assert.True((isHere ? (int)number : -1) == SystemCalls.Number(name), $"{name}: header {(isHere ? number : "none")}, ours {SystemCalls.Number(name)}");
        }

        var table = new Dictionary<string, int>(StringComparer.Ordinal);
        foreach (Match line in GenericCall().Matches(File.ReadAllText("/usr/include/asm-generic/unistd.h"))) table[line.Groups["name"].Value] = int.Parse(line.Groups["number"].Value, CultureInfo.InvariantCulture);
        foreach (var name in SystemCalls.Names)
        {
            // The table has the name that the call has on all architectures.
            var number = table.GetValueOrDefault(name == "newfstatat" ? "fstatat" : name, -1);
            Assert.True(number == SystemCalls.Number(name, Architecture.Arm64), $"{name}: generic table {number}, ours {SystemCalls.Number(name, Architecture.Arm64)}");
        }
    }

    private static uint Ioc(uint direction, uint type, uint number, int size) => direction << 30 | (uint)size << 16 | type << 8 | number;

    private static ulong Bits(object value) => value is ulong or uint or ushort or byte ? Convert.ToUInt64(value, CultureInfo.InvariantCulture) : unchecked((ulong)Convert.ToInt64(value, CultureInfo.InvariantCulture));

    private static Dictionary<string, ulong> Headers()
    {
        using var folder = new TestFolder();
        var sources = Path.Combine(AppContext.BaseDirectory, "Interop");
        var program = Compiler.Compile(Path.Combine(sources, "layouts.c"), folder["layouts"], "-I", sources);
        var (code, text) = Compiler.Run(program);
        Assert.Equal(0, code);
        var values = new Dictionary<string, ulong>(StringComparer.Ordinal);
        foreach (var line in text.Split('\n', StringSplitOptions.RemoveEmptyEntries))
        {
            var parts = line.Split(' ');
            values[parts[0]] = parts[1].StartsWith("0x", StringComparison.Ordinal) ? ulong.Parse(parts[1].AsSpan(2), NumberStyles.HexNumber, CultureInfo.InvariantCulture) : ulong.Parse(parts[1], CultureInfo.InvariantCulture);
        }

        return values;
    }

    [GeneratedRegex(@"^#define __NR(3264)?_(?<name>\w+) (?<number>\d+)$", RegexOptions.ExplicitCapture | RegexOptions.Multiline, 1000)]
    private static partial Regex GenericCall();

    [GeneratedRegex("^[A-Z][A-Z0-9_]+$", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex CName();
}
