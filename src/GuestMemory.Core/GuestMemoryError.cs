namespace GuestMemory.Core;

/// <summary>What went wrong, as a stable name that callers and scripts may test.</summary>
public enum GuestMemoryError
{
    /// <summary>A system call failed for a reason that has no name of its own here; see <see cref="Interop.SyscallException"/>.</summary>
    SyscallFailed,

    // Mapping
    /// <summary>A mapping of no bytes was asked for.</summary>
    ZeroSize,
    /// <summary>A file offset is not a multiple of the page size.</summary>
    UnalignedOffset,
    /// <summary>A size is not a multiple of the page size where it must be.</summary>
    UnalignedSize,
    /// <summary>A raw pointer is not page aligned (upstream: InvalidPointer).</summary>
    InvalidPointer,
    /// <summary>MAP_FIXED is refused: it would silently replace what is mapped there (upstream: MapFixed).</summary>
    MapFixed,
    /// <summary>The mapping would reach past the end of its file (upstream: MappingPastEof).</summary>
    MappingPastEof,
    /// <summary>What is at the path is not a file that can be used: a directory, a device, a symbolic link.</summary>
    NotAFile,
    /// <summary>Not enough memory for the mapping.</summary>
    OutOfMemory,
    /// <summary>The pool of huge pages does not hold enough free pages.</summary>
    HugePagesExhausted,
    /// <summary>A huge page size that this host does not offer.</summary>
    HugePageSizeUnsupported,
    /// <summary>The region is used by a page-fault handler (or another holder) and cannot be removed.</summary>
    RegionInUse,
    /// <summary>The region was removed.</summary>
    RegionDisposed,

    // Address spaces
    /// <summary>The region would end past the last address, 2^64 - 1 (upstream: InvalidGuestRegion).</summary>
    InvalidGuestRegion,
    /// <summary>No region was given (upstream: NoMemoryRegion).</summary>
    NoMemoryRegion,
    /// <summary>Two regions share guest addresses (upstream: MemoryRegionOverlap).</summary>
    MemoryRegionOverlap,
    /// <summary>The regions are not in ascending order (upstream: UnsortedMemoryRegions).</summary>
    UnsortedMemoryRegions,
    /// <summary>No region holds this guest address (upstream: InvalidGuestAddress).</summary>
    InvalidGuestAddress,
    /// <summary>The range runs past the end of its region (upstream: InvalidBackendAddress).</summary>
    InvalidBackendAddress,
    /// <summary>Guest address arithmetic passed 2^64 (upstream: GuestAddressOverflow).</summary>
    GuestAddressOverflow,
    /// <summary>Fewer bytes were transferred than asked for (upstream: PartialBuffer); see <see cref="PartialBufferException"/>.</summary>
    PartialBuffer,
    /// <summary>The region gives no access by host addresses (upstream: HostAddressNotAvailable).</summary>
    HostAddressNotAvailable,
    /// <summary>The page is mapped but cannot be had: truncated file, poisoned page, no page in the huge page pool, wrong protection.</summary>
    PageNotAccessible,

    // Slices of memory; see VolatileMemoryException
    /// <summary>An access past the end of a slice (upstream: OutOfBounds).</summary>
    OutOfBounds,
    /// <summary>An offset plus a length passes 2^64 - 1 (upstream: Overflow).</summary>
    Overflow,
    /// <summary>So many elements do not fit in any memory (upstream: TooBig).</summary>
    TooBig,
    /// <summary>An address that is not a multiple of what the access needs (upstream: Misaligned).</summary>
    Misaligned,
    /// <summary>The source ended before everything was read (upstream: UnexpectedEof).</summary>
    UnexpectedEof,
    /// <summary>The sink took no more before everything was written (upstream: WriteZero).</summary>
    WriteZero,

    /// <summary>The region has no dirty bitmap.</summary>
    DirtyTrackingOff,

    /// <summary>A dirty log that does not fit its file or its region (upstream: InvalidData).</summary>
    InvalidLog,
    /// <summary>The dirty log was disposed, and no region marks in it any more.</summary>
    LogDisposed,
    /// <summary>Only the front end that migrates the VM takes the marks of its log, and the memory has no other bitmap.</summary>
    LogOfFrontEnd,

    // Memory in the slots of a VM
    /// <summary>An offset or address is not a multiple of the page size (upstream: NotPageAligned).</summary>
    NotPageAligned,
    /// <summary>A range leaves its memory (upstream: InvalidAddress).</summary>
    InvalidAddress,
    /// <summary>A file offset past 2^63 - 1 (upstream: InvalidOffset).</summary>
    InvalidOffset,
    /// <summary>A single mapping takes no further mappings (upstream: AddFdMappingIsUnsupported).</summary>
    AddFdMappingIsUnsupported,
    /// <summary>A single mapping has no part that could be taken away (upstream: RemoveMappingIsUnsupported).</summary>
    RemoveMappingIsUnsupported,
    /// <summary>This user may not use /dev/kvm.</summary>
    KvmDenied,
    /// <summary>This host has no KVM, or KVM lacks what was asked for.</summary>
    KvmUnsupported,
    /// <summary>The VM has no such memory slot.</summary>
    SlotNotFound,
    /// <summary>A dirty ring was full before KVM stopped the guest: which pages were written is not known.</summary>
    DirtyRingOverrun,
    /// <summary>The VM was removed.</summary>
    VmDisposed,

    // Xen
    /// <summary>Flags of a Xen mapping that are unknown, or that exclude each other (upstream: MmapFlags).</summary>
    MmapFlags,
    /// <summary>A foreign or grant mapping without the file of its device (upstream: InvalidFileOffset).</summary>
    InvalidFileOffset,
    /// <summary>A foreign or grant mapping from another offset of its device than 0 (upstream: InvalidOffsetLength).</summary>
    InvalidOffsetLength,
    /// <summary>A frame of another domain cannot be mapped.</summary>
    FrameNotMapped,
    /// <summary>Pages of another domain cannot be mapped by their grant references.</summary>
    GrantNotMapped,
    /// <summary>There is no such domain on this Xen host.</summary>
    DomainNotFound,
    /// <summary>This user may not use Xen's device.</summary>
    XenDenied,
    /// <summary>This host is not a Xen domain, or its kernel lacks the device.</summary>
    XenUnsupported,

    // userfaultfd and the hand-over
    /// <summary>This user may not create a userfaultfd.</summary>
    UffdDenied,
    /// <summary>The kernel lacks userfaultfd or a feature of it.</summary>
    UffdUnsupported,
    /// <summary>The memory cannot be registered with userfaultfd.</summary>
    UffdRegisterFailed,
    /// <summary>The path has no room in a socket address: at most 107 bytes.</summary>
    SocketPathTooLong,
    /// <summary>There is something at the path that is not a socket.</summary>
    NotASocket,
    /// <summary>Nothing is at the socket path.</summary>
    SocketNotFound,
    /// <summary>Another process listens at the socket path.</summary>
    SocketInUse,
    /// <summary>The socket is there but nobody listens.</summary>
    ConnectionRefused,
    /// <summary>Everyone may replace files in the socket's directory.</summary>
    InsecureDirectory,
    /// <summary>The peer went away before the hand-over was complete.</summary>
    PeerClosed,
    /// <summary>The peer did not complete the hand-over in time.</summary>
    HandoverTimeout,
    /// <summary>The hand-over came without a descriptor.</summary>
    HandoverNoDescriptor,
    /// <summary>The hand-over came with more descriptors than a userfaultfd and a memfd.</summary>
    HandoverTooManyDescriptors,
    /// <summary>The descriptor that came is not a userfaultfd.</summary>
    HandoverNotUserfaultfd,
    /// <summary>The VMM did not hand its memory over (a memfd of ordinary pages), so that no other process can read it.</summary>
    MemoryNotShared,
    /// <summary>The second descriptor that came is not a memfd that is sealed against shrinking.</summary>
    HandoverNotMemfd,
    /// <summary>The hand-over is larger than the limit.</summary>
    HandoverTooLarge,
    /// <summary>The hand-over is not the JSON that it must be.</summary>
    HandoverBadJson,
    /// <summary>The mapping list contradicts itself or the memory image.</summary>
    InvalidMapping,
    /// <summary>The image, of memory or of a disk, was not found.</summary>
    ImageNotFound,
    /// <summary>The image, of memory or of a disk, cannot be read, is empty, or shrank while it was served.</summary>
    ImageUnreadable,
    /// <summary>The memory image, or a layer, is no longer what VMs were given: overwritten, or another file, or read in another way.</summary>
    ImageChanged,
    /// <summary>A layer of changes whose pages cannot be told from its holes, and that no bits beside it tell of.</summary>
    LayerUntrusted,
    /// <summary>The state of a VM that another process served has a layout that this program does not know.</summary>
    StateMismatch,
    /// <summary>There is no record of touches to replay.</summary>
    RecordNotFound,
    /// <summary>A record of touches is not one, is of another image, or cannot be written.</summary>
    InvalidRecord,
    /// <summary>An image that is damaged or contradicts itself.</summary>
    InvalidImage,
    /// <summary>A port, for metrics or an export, is taken, or may not be used.</summary>
    PortInUse,
    /// <summary>A page is missing, and the handler that should provide it has hung up.</summary>
    HandlerGone,
    /// <summary>No such user.</summary>
    UserNotFound,
    /// <summary>This process may not run as another user.</summary>
    UserDenied,
    /// <summary>A worker made a system call that a worker never makes, and the kernel ended it.</summary>
    ForbiddenCall,
    /// <summary>No such group.</summary>
    GroupNotFound,

    // Images in a store
    /// <summary>An object that a store should have is not there, or shorter than it should be.</summary>
    ObjectNotFound,
    /// <summary>The store could not be accessed.</summary>
    StoreFailed,
    /// <summary>The store refuses this user.</summary>
    StoreDenied,
    /// <summary>The store can only be read.</summary>
    StoreReadOnly,
    /// <summary>The store cannot list what it has.</summary>
    StoreUnlisted,
    /// <summary>The manifest of an image is not signed with a trusted key.</summary>
    ImageUntrusted,
    /// <summary>A file that should hold a key holds none, or one of another kind.</summary>
    InvalidKey,

    // Images on disk
    /// <summary>The file is there already.</summary>
    FileExists,
    /// <summary>The image is being served or written.</summary>
    ImageInUse,
    /// <summary>The base image has another size than the memory.</summary>
    BaseSizeMismatch,
    /// <summary>The file is behind a region that is to be written to it.</summary>
    TargetIsMapped,
    /// <summary>The file system has no room for the file.</summary>
    DiskFull,
    /// <summary>An image of a kind, a version or a compression that is not read; the message names it.</summary>
    ImageUnsupported,
    /// <summary>The guest ranges that were given for an image do not fit its length, or overlap.</summary>
    LayoutMismatch,
    /// <summary>No digest lies beside the image, and its format has no checksums.</summary>
    DigestNotFound,
    /// <summary>The image does not have the digest that lies beside it.</summary>
    DigestMismatch,

    // Other processes
    /// <summary>There is no such process, or it has ended.</summary>
    ProcessNotFound,
    /// <summary>This user may not examine the process.</summary>
    ProcessDenied,
    /// <summary>A debugger, or another tracer, traces the process already.</summary>
    ProcessTraced,
    /// <summary>The process cannot be examined by this program: a 32-bit one, a thread of the kernel.</summary>
    ProcessUnsupported,
    /// <summary>The process that was tracked or attached has ended, or runs another program.</summary>
    ProcessEnded,
    /// <summary>The process has no memory at an address, or has other memory there by now.</summary>
    RangeNotMapped,
    /// <summary>A userfaultfd watches a part of the range already.</summary>
    RangeInUse,
    /// <summary>The kernel notes no soft-dirty pages, or not in such memory.</summary>
    SoftDirtyUnsupported,
    /// <summary>The process is no VMM whose guest memory can be found.</summary>
    NoGuestMemory,
    /// <summary>At which guest addresses the memory of a VMM lies is not known.</summary>
    LayoutUnknown,
    /// <summary>The monitor of a VMM cannot be used: another client has it, or it is none.</summary>
    MonitorFailed,

    // Allocation of addresses
    /// <summary>A range of no addresses (upstream: AllocSizeZero).</summary>
    AllocSizeZero,
    /// <summary>An alignment that is not a power of two, or less than the least one (upstream: BadAlignment).</summary>
    BadAlignment,
    /// <summary>The holder has no addresses (upstream: BadAlloc).</summary>
    BadAlloc,
    /// <summary>The holder, or another one, has these addresses already (upstream: ExistingAlloc).</summary>
    ExistingAlloc,
    /// <summary>The holder is not one that can be asked for this: no PCI register, or without addresses (upstream: InvalidAlloc).</summary>
    InvalidAlloc,
    /// <summary>Ports past 0xffff (upstream: IOPortOutOfRange).</summary>
    IOPortOutOfRange,
    /// <summary>The machine has no MMIO for platform devices (upstream: MissingPlatformMMIOAddresses).</summary>
    MissingPlatformMmioAddresses,
    /// <summary>The machine has no ports (upstream: NoIoAllocator).</summary>
    NoIoAllocator,
    /// <summary>No such addresses are free (upstream: OutOfSpace).</summary>
    OutOfSpace,
    /// <summary>Two pools of addresses overlap (upstream: RegionOverlap).</summary>
    RegionOverlap,

    // Tubes
    /// <summary>The other end of the tube was closed (upstream: Disconnected).</summary>
    Disconnected,
    /// <summary>Nothing came through the tube in time, or nobody took what was sent.</summary>
    TubeTimeout,
    /// <summary>What came is not the JSON that it must be, or its descriptors are not those that it names (upstream: Json).</summary>
    BadJson,
    /// <summary>A packet is larger than the limit.</summary>
    PacketTooLarge,
    /// <summary>More descriptors than a message may carry (upstream: SendTooManyFds).</summary>
    SendTooManyFds,
    /// <summary>More descriptors came, or were asked for, than a message may carry (upstream: RecvTooManyFds).</summary>
    RecvTooManyFds,
    /// <summary>A request about a VM's memory failed; the message is the whole chain (upstream: RequestFailed).</summary>
    RequestFailed,
    /// <summary>The answer is of another kind than the request asks for (upstream: UnexpectedResponse).</summary>
    UnexpectedResponse,

    // vhost-user
    /// <summary>A message whose version, flags, size or counts are not those of its request (upstream: InvalidMessage).</summary>
    InvalidMessage,
    /// <summary>The peer ended the connection in the middle of a message (upstream: PartialMessage).</summary>
    PartialMessage,
    /// <summary>A message with more or fewer descriptors than its request carries, or of another kind (upstream: IncorrectFds).</summary>
    IncorrectFds,
    /// <summary>A request that was not offered, or whose feature was not negotiated (upstream: InactiveOperation).</summary>
    InactiveOperation,
    /// <summary>Features that were not offered (upstream: FeatureMismatch).</summary>
    FeatureMismatch,
    /// <summary>A request that cannot be executed in this state (upstream: InvalidOperation).</summary>
    InvalidOperation,
    /// <summary>A value of a request that is out of its range (upstream: InvalidParam).</summary>
    InvalidParam,
    /// <summary>A file of an untrusted peer that is not sealed against shrinking.</summary>
    FileNotSealed,
    /// <summary>A virtqueue whose rings or descriptor chains contradict the virtio specification.</summary>
    InvalidQueue,

    // A VM that runs, exported
    /// <summary>The memory of this VM cannot be exported while it runs.</summary>
    LiveUnsupported,
    /// <summary>The memory of the VM is being exported while it runs already.</summary>
    LiveBusy,
    /// <summary>The export of a VM that runs came to nothing; the VM goes on.</summary>
    LiveFailed,

    // The shell
    /// <summary>The path is not one of the file system.</summary>
    NotAFilePath,
    /// <summary>A region, a VM, an image, a back end or an export of that name is there already.</summary>
    NameInUse,
    /// <summary>No region has that name.</summary>
    RegionNotFound,
    /// <summary>No handler has that number or socket path.</summary>
    HandlerNotFound,
    /// <summary>No VM has that number or name, or none is connected.</summary>
    VmNotFound,
    /// <summary>The handler serves no image of that name.</summary>
    UffdImageNotFound,
    /// <summary>VMs are served from the image.</summary>
    VmsInService,
    /// <summary>No service has that number or socket path.</summary>
    ServiceNotFound,
    /// <summary>No vhost-user back end has that name.</summary>
    BackendNotFound,
    /// <summary>No export of memory has that name.</summary>
    ExportNotFound,
    /// <summary>The service ended on its own.</summary>
    ServiceFailed,
    /// <summary>The handler ended on its own.</summary>
    HandlerFailed,
    /// <summary>The handler's process could not be started, or ended before it listened.</summary>
    HandlerStartFailed,
    /// <summary>The handler's new program could not take over; the process that served goes on, and no VM is lost.</summary>
    UpgradeFailed,
    /// <summary>The handler's process does not answer, or not as it must.</summary>
    ControlFailed,
    /// <summary>What was waited for did not come in time.</summary>
    WaitTimeout,
    /// <summary>A value or a combination of parameters that cannot be used.</summary>
    ValueNotSupported,

    // Virtual addresses, and the kernel of a guest
    /// <summary>A virtual address whose upper bits are not all equal: page tables of this format cannot map it.</summary>
    AddressNotCanonical,
    /// <summary>The page tables map nothing at a virtual address.</summary>
    PageNotPresent,
    /// <summary>A page table lies outside the memory.</summary>
    PageTableNotMapped,
    /// <summary>An entry of a page table has bits that are reserved.</summary>
    PageTableInvalid,
    /// <summary>A page table can be read as one of several formats.</summary>
    PageTableAmbiguous,
    /// <summary>No Linux kernel is in the memory that can be read.</summary>
    KernelNotFound,
    /// <summary>What a guest's kernel keeps, its symbols, types or tasks, was not found or contradicts itself.</summary>
    InvalidKernelData,
    /// <summary>A guest's kernel does not carry its types (BTF).</summary>
    KernelTypesNotFound,
    /// <summary>A guest's kernel has no symbol of that name.</summary>
    SymbolNotFound,
    /// <summary>A guest has no process of that number or name.</summary>
    GuestProcessNotFound,

    // Search
    /// <summary>What is to be searched for is no pattern, regular expression or text that memory can hold.</summary>
    InvalidPattern,
}
