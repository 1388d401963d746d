using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary><c>/dev/kvm</c> and the ioctls of its VMs and vCPUs: https://docs.kernel.org/virt/kvm/api.html.</summary>
internal static unsafe partial class KvmApi
{
    public const string DevicePath = "/dev/kvm";
    public const string WhenMissing = "Load the module ('modprobe kvm_intel' or kvm_amd) and enable virtualization in the firmware; in a VM, nested virtualization.";
    public const string WhenDenied = "Add the user to the group kvm, or 'setfacl -m u:USER:rw /dev/kvm'.";

    public const uint KVM_API_VERSION = 12;
    public const uint KVM_GET_API_VERSION = 0xAE00;
    public const uint KVM_CREATE_VM = 0xAE01;
    public const uint KVM_CHECK_EXTENSION = 0xAE03;
    public const uint KVM_GET_VCPU_MMAP_SIZE = 0xAE04;
    public const uint KVM_GET_SUPPORTED_CPUID = 0xC008AE05;
    public const uint KVM_CREATE_VCPU = 0xAE41;
    public const uint KVM_GET_DIRTY_LOG = 0x4010AE42;
    public const uint KVM_SET_USER_MEMORY_REGION = 0x4020AE46;
    public const uint KVM_SET_TSS_ADDR = 0xAE47;
    public const uint KVM_IOEVENTFD = 0x4040AE79;
    public const uint KVM_RUN = 0xAE80;
    public const uint KVM_GET_REGS = 0x8090AE81;
    public const uint KVM_SET_REGS = 0x4090AE82;
    public const uint KVM_GET_SREGS = 0x8138AE83;
    public const uint KVM_SET_SREGS = 0x4138AE84;
    public const uint KVM_SET_CPUID2 = 0x4008AE90;
    public const uint KVM_ENABLE_CAP = 0x4068AEA3;
    public const uint KVM_CLEAR_DIRTY_LOG = 0xC018AEC0;
    public const uint KVM_RESET_DIRTY_RINGS = 0xAEC7;

    public const uint KVM_CAP_NR_MEMSLOTS = 10;
    public const uint KVM_CAP_IOEVENTFD = 36;
    public const uint KVM_CAP_READONLY_MEM = 81;
    public const uint KVM_CAP_IMMEDIATE_EXIT = 136;
    public const uint KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168;
    public const uint KVM_CAP_DIRTY_LOG_RING = 192;
    public const uint KVM_CAP_DIRTY_LOG_RING_ACQ_REL = 223;

    public const uint KVM_MEM_LOG_DIRTY_PAGES = 1;
    public const uint KVM_MEM_READONLY = 2;
    public const uint KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1;
    public const uint KVM_DIRTY_LOG_INITIALLY_SET = 2;
    public const int KVM_DIRTY_LOG_PAGE_OFFSET = 64;
    public const uint KVM_DIRTY_GFN_F_DIRTY = 1;
    public const uint KVM_DIRTY_GFN_F_RESET = 2;
    public const uint KVM_IOEVENTFD_FLAG_DATAMATCH = 1;
    public const uint KVM_IOEVENTFD_FLAG_PIO = 2;
    public const uint KVM_IOEVENTFD_FLAG_DEASSIGN = 4;

    public const uint KVM_EXIT_IO = 2;
    public const uint KVM_EXIT_HLT = 5;
    public const uint KVM_EXIT_MMIO = 6;
    public const uint KVM_EXIT_SHUTDOWN = 8;
    public const uint KVM_EXIT_FAIL_ENTRY = 9;
    public const uint KVM_EXIT_INTERNAL_ERROR = 17;
    public const uint KVM_EXIT_DIRTY_RING_FULL = 31;
    public const byte KVM_EXIT_IO_OUT = 1;

    // Outside of every guest's memory; Intel processors from before 2010 need it for real mode.
    private const long TssAddress = 0xfffbd000;

    // More than any kernel reports; 40 bytes each.
    private const int CpuidEntries = 256;

    /// <summary>Opens /dev/kvm; 0 or the error number.</summary>
    public static int TryOpen(out SafeDescriptor? device)
    {
        var number = open(DevicePath, Userfaultfd.O_RDWR | Userfaultfd.O_CLOEXEC);
        device = number >= 0 ? new SafeDescriptor(number) : null;
        return number >= 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    /// <summary>Opens /dev/kvm, or says what is missing.</summary>
    public static SafeDescriptor Open()
    {
        var error = TryOpen(out var device);
        if (error != 0)
        {
            throw error is Errno.EACCES or Errno.EPERM
                ? new SyscallException("open", error, $"Opening {DevicePath}", GuestMemoryError.KvmDenied, WhenDenied)
                : new SyscallException("open", error, $"Opening {DevicePath}", GuestMemoryError.KvmUnsupported, WhenMissing);
        }

        if (Try(device!, KVM_GET_API_VERSION, 0, out var version) == 0 && version == KVM_API_VERSION) return device!;
        device!.Dispose();
        throw new GuestMemoryException(GuestMemoryError.KvmUnsupported, $"{DevicePath} has the API version {version}; {KVM_API_VERSION} is needed.");
    }

    /// <summary>A VM without memory and vCPUs.</summary>
    public static SafeDescriptor CreateVm(SafeDescriptor device) => new(Call(device, KVM_CREATE_VM, 0, "KVM_CREATE_VM", "Creating a VM"));

    /// <summary>What an extension's answer is: 0 where KVM lacks it.</summary>
    public static int Extension(SafeDescriptor descriptor, uint capability) => Try(descriptor, KVM_CHECK_EXTENSION, (nint)capability, out var answer) == 0 ? answer : 0;

    /// <summary>A vCPU of x86 that has all the features that KVM can give it.</summary>
    public static SafeDescriptor CreateVcpu(SafeDescriptor vm, int id)
    {
        if (id == 0) _ = Call(vm, KVM_SET_TSS_ADDR, unchecked((nint)TssAddress), "KVM_SET_TSS_ADDR", "Preparing real mode");
        var vcpu = new SafeDescriptor(Call(vm, KVM_CREATE_VCPU, id, "KVM_CREATE_VCPU", $"Creating vCPU {id}"));
        try
        {
            // struct kvm_cpuid2: the number of entries, four bytes of padding, the entries.
            var cpuid = stackalloc byte[8 + CpuidEntries * 40];
            *(int*)cpuid = CpuidEntries;
            using var device = Open();
            _ = Call(device, KVM_GET_SUPPORTED_CPUID, (nint)cpuid, "KVM_GET_SUPPORTED_CPUID", "Asking for the features of vCPUs");
            _ = Call(vcpu, KVM_SET_CPUID2, (nint)cpuid, "KVM_SET_CPUID2", $"Setting the features of vCPU {id}");
            return vcpu;
        }
        catch
        {
            vcpu.Dispose();
            throw;
        }
    }

    /// <summary>Maps what the kernel and this process share about a vCPU.</summary>
    public static SafeMapping MapRun(SafeDescriptor vcpu)
    {
        using var device = Open();
        var size = Call(device, KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE", "Asking for the size of a vCPU's state");
        return MapVcpu(vcpu, (nuint)size, 0);
    }

    /// <summary>Maps the dirty ring of a vCPU; the size in bytes is that of the VM.</summary>
    public static SafeMapping MapRing(SafeDescriptor vcpu, nuint size) => MapVcpu(vcpu, size, KVM_DIRTY_LOG_PAGE_OFFSET * (long)HostPage.Size);

    /// <summary>One ioctl whose argument is a structure; 0 or the error number.</summary>
    public static int Try<T>(SafeDescriptor descriptor, uint request, ref T argument)
        where T : unmanaged
    {
        fixed (T* pointer = &argument) return Try(descriptor, request, (nint)pointer, out _);
    }

    /// <summary>One ioctl; 0 or the error number.</summary>
    public static int Try(SafeDescriptor descriptor, uint request, nint argument, out int result)
    {
        using var lease = new DescriptorLease(descriptor);
        do result = ioctl(lease.Number, request, argument);
        while (result < 0 && Marshal.GetLastPInvokeError() == Errno.EINTR && request != KVM_RUN);
        return result >= 0 ? 0 : Marshal.GetLastPInvokeError();
    }

    private static int Call(SafeDescriptor descriptor, uint request, nint argument, string name, string attempted)
    {
        var error = Try(descriptor, request, argument, out var result);
        return error == 0 ? result : throw new SyscallException($"ioctl({name})", error, attempted);
    }

    private static SafeMapping MapVcpu(SafeDescriptor vcpu, nuint size, long offset)
    {
        using var lease = new DescriptorLease(vcpu);
        return Mman.Map(size, Mman.PROT_READ | Mman.PROT_WRITE, Mman.MAP_SHARED, lease.Number, offset, "Mapping a vCPU's state");
    }

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int open(string pathname, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int ioctl(int fd, nuint request, nint argument);
}
