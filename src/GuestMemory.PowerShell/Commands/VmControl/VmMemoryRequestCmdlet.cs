using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Kvm;
using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>A cmdlet that makes a request about a VM's memory: a parameter set a variant.</summary>
public abstract class VmMemoryRequestCmdlet : GuestMemoryCmdlet
{
    /// <summary>The parameter set of a variant.</summary>
    protected const string PrepareSet = nameof(VmMemoryRequest.PrepareSharedMemoryRegion);

    /// <inheritdoc cref="PrepareSet"/>
    protected const string RegisterSet = nameof(VmMemoryRequest.RegisterMemory);

    /// <inheritdoc cref="PrepareSet"/>
    protected const string MmapSet = nameof(VmMemoryRequest.MmapAndRegisterMemory);

    /// <inheritdoc cref="PrepareSet"/>
    protected const string FreeSet = nameof(VmMemoryRequest.DynamicallyFreeMemoryRanges);

    /// <inheritdoc cref="PrepareSet"/>
    protected const string ReclaimSet = nameof(VmMemoryRequest.DynamicallyReclaimMemoryRanges);

    /// <inheritdoc cref="PrepareSet"/>
    protected const string BalloonSet = nameof(VmMemoryRequest.BalloonTargetReached);

    /// <inheritdoc cref="PrepareSet"/>
    protected const string UnregisterSet = nameof(VmMemoryRequest.UnregisterMemory);

    /// <inheritdoc cref="PrepareSet"/>
    protected const string IoEventSet = nameof(VmMemoryRequest.IoEventRaw);

    /// <summary>Reserves one slot for a PCI register.</summary>
    [Parameter(Mandatory = true, ParameterSetName = PrepareSet)]
    public SwitchParameter PrepareSharedMemoryRegion { get; set; }

    /// <summary>Maps memory into the guest.</summary>
    [Parameter(Mandatory = true, ParameterSetName = RegisterSet)]
    public SwitchParameter RegisterMemory { get; set; }

    /// <summary>Maps shared memory into the guest, with parts of files over it.</summary>
    [Parameter(Mandatory = true, ParameterSetName = MmapSet)]
    public SwitchParameter MmapAndRegisterMemory { get; set; }

    /// <summary>Frees guest memory on the host.</summary>
    [Parameter(Mandatory = true, ParameterSetName = FreeSet)]
    public SwitchParameter DynamicallyFreeMemoryRanges { get; set; }

    /// <summary>Lets the guest use freed memory again.</summary>
    [Parameter(Mandatory = true, ParameterSetName = ReclaimSet)]
    public SwitchParameter DynamicallyReclaimMemoryRanges { get; set; }

    /// <summary>Reports that the balloon has its size.</summary>
    [Parameter(Mandatory = true, ParameterSetName = BalloonSet)]
    public SwitchParameter BalloonTargetReached { get; set; }

    /// <summary>Takes memory out of the guest that was registered.</summary>
    [Parameter(Mandatory = true, ParameterSetName = UnregisterSet)]
    public SwitchParameter UnregisterMemory { get; set; }

    /// <summary>Makes a guest's stores signal an eventfd, or ends that.</summary>
    [Parameter(Mandatory = true, ParameterSetName = IoEventSet)]
    public SwitchParameter IoEventRaw { get; set; }

    /// <summary>The PCI register.</summary>
    [Parameter(Mandatory = true, ParameterSetName = PrepareSet)]
    [ArgumentCompleter(typeof(AllocCompleter))]
    [ValidateNotNull]
    public Alloc? Alloc { get; set; }

    /// <summary>The memory that is registered.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = RegisterSet)]
    [Alias("Memory", "Region")]
    [Descriptor]
    [ValidateNotNull]
    public DescriptorArgument? Source { get; set; }

    /// <summary>The kind of source.</summary>
    [Parameter(ParameterSetName = RegisterSet)]
    public VmMemorySourceType SourceType { get; set; }

    /// <summary>The shared memory.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = MmapSet)]
    [Alias("Shm")]
    [Descriptor]
    [ValidateNotNull]
    public DescriptorArgument? SharedMemory { get; set; }

    /// <summary>Where in the source the memory begins, in bytes.</summary>
    [Parameter(ParameterSetName = RegisterSet)]
    [Number]
    public ulong Offset { get; set; }

    /// <summary>A length in bytes.</summary>
    [Parameter(ParameterSetName = RegisterSet)]
    [Parameter(ParameterSetName = MmapSet)]
    [Parameter(Mandatory = true, ParameterSetName = BalloonSet)]
    [Alias("Length", "Count")]
    [Number]
    public ulong Size { get; set; }

    /// <summary>The place of the memory in the guest.</summary>
    [Parameter(ParameterSetName = RegisterSet)]
    [Parameter(ParameterSetName = MmapSet)]
    [Alias("Dest", "GuestAddress")]
    [ArgumentCompleter(typeof(AllocCompleter))]
    [Destination]
    [ValidateNotNull]
    public VmMemoryDestination? Destination { get; set; }

    /// <summary>The accesses that are allowed.</summary>
    [Parameter(ParameterSetName = RegisterSet)]
    [Alias("Prot")]
    public MemoryProtection Protection { get; set; } = MemoryProtection.ReadWrite;

    /// <summary>Who chooses the caching.</summary>
    [Parameter(ParameterSetName = RegisterSet)]
    [Parameter(ParameterSetName = PrepareSet)]
    public MemCacheType Cache { get; set; }

    /// <summary>What kind of Vulkan handle the source is.</summary>
    [Parameter(ParameterSetName = RegisterSet)]
    public uint HandleType { get; set; }

    /// <summary>The index of the Vulkan memory type.</summary>
    [Parameter(ParameterSetName = RegisterSet)]
    public uint MemoryIdx { get; set; }

    /// <summary>The UUID of the Vulkan device.</summary>
    [Parameter(ParameterSetName = RegisterSet)]
    [Uuid]
    public byte[] DeviceUuid { get; set; } = new byte[16];

    /// <summary>The UUID of the Vulkan driver.</summary>
    [Parameter(ParameterSetName = RegisterSet)]
    [Uuid]
    public byte[] DriverUuid { get; set; } = new byte[16];

    /// <summary>The parts of files that are mapped over the shared memory.</summary>
    [Parameter(ParameterSetName = MmapSet)]
    [FileMapping]
    public virtual FileMappingArgument[] FileMapping { get; set; } = [];

    /// <summary>Ranges of guest memory.</summary>
    [Parameter(Mandatory = true, ParameterSetName = FreeSet)]
    [Parameter(Mandatory = true, ParameterSetName = ReclaimSet)]
    [Alias("Ranges")]
    [Range]
    [AllowEmptyCollection]
    public AddressRange[] Range { get; set; } = [];

    /// <summary>The id of the registration's answer.</summary>
    [Parameter(Mandatory = true, ValueFromPipelineByPropertyName = true, ParameterSetName = UnregisterSet)]
    [ArgumentCompleter(typeof(RegionIdCompleter))]
    [Number]
    public ulong RegionId { get; set; }

    /// <summary>The eventfd.</summary>
    [Parameter(Mandatory = true, ParameterSetName = IoEventSet)]
    [Descriptor]
    [ValidateNotNull]
    public DescriptorArgument? Event { get; set; }

    /// <summary>The guest physical address of the stores.</summary>
    [Parameter(Mandatory = true, ParameterSetName = IoEventSet)]
    [Alias("Addr")]
    [Number]
    public ulong Address { get; set; }

    /// <summary>The stores that signal.</summary>
    [Parameter(ParameterSetName = IoEventSet)]
    [ArgumentCompleter(typeof(DatamatchCompleter))]
    public Datamatch Datamatch { get; set; }

    /// <summary>Starts the signalling; -Register:$false ends it.</summary>
    [Parameter(ParameterSetName = IoEventSet)]
    public SwitchParameter Register { get; set; } = true;

    private bool HasSize => MyInvocation.BoundParameters.ContainsKey(nameof(Size));

    /// <summary>The request of the parameters. Files that it opens are added to a list.</summary>
    protected VmMemoryRequest MakeRequest(ICollection<IDisposable> opened) => ParameterSetName switch
    {
        PrepareSet => new VmMemoryRequest.PrepareSharedMemoryRegion(Alloc!, Cache),
        RegisterSet => MakeRegister(opened),
        MmapSet => MakeMmap(opened),
        FreeSet => new VmMemoryRequest.DynamicallyFreeMemoryRanges(Ranges()),
        ReclaimSet => new VmMemoryRequest.DynamicallyReclaimMemoryRanges(Ranges()),
        BalloonSet => new VmMemoryRequest.BalloonTargetReached(Size),
        UnregisterSet => new VmMemoryRequest.UnregisterMemory(RegionId),
        _ => new VmMemoryRequest.IoEventRaw(new IoEventUpdateRequest(Event!.Open(writable: true, opened), Address, Datamatch, Register)),
    };

    /// <summary>The file mappings, with their files open.</summary>
    protected IReadOnlyList<VmMemoryFileMapping> OpenFileMappings(ICollection<IDisposable> opened) => [.. FileMapping.Select(mapping => mapping.Open(opened))];

    private VmMemoryRange[] Ranges() => [.. Range.Select(range => new VmMemoryRange(range.Address, range.Size))];

    private VmMemoryRequest.RegisterMemory MakeRegister(ICollection<IDisposable> opened)
    {
        if ((Protection & ~MemoryProtection.ReadWrite) != 0) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"A request can ask for Read and Write only, not for {Protection}.");
        return new VmMemoryRequest.RegisterMemory(MakeSource(opened), DestinationOr(Source!.Region), Protection, Cache);
    }

    private VmMemorySource MakeSource(ICollection<IDisposable> opened)
    {
        var source = Source!;
        var isAnonymous = source.Region is { IsDisposed: false } region && region.GetFileOffset() is null;
        var type = isAnonymous && !MyInvocation.BoundParameters.ContainsKey(nameof(SourceType)) ? VmMemorySourceType.ExternalMapping : SourceType;
        if (type == VmMemorySourceType.ExternalMapping) return MakeExternal(source);
        var file = source.Open(Protection.HasFlag(MemoryProtection.Write), opened);
        if (Offset > ulong.MaxValue - source.Start) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"The offset {Offset} into {source} is past every file's end.");
        var start = source.Start + Offset;
        var size = HasSize ? Size : source.LengthFrom(Offset, file);
        if (type == VmMemorySourceType.SharedMemory && start != 0)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"Shared memory is mapped from its start, not from offset {start}. Leave -SourceType out.");
        return type switch
        {
            VmMemorySourceType.SharedMemory => new VmMemorySource.SharedMemory(new SharedMemory(file, size)),
            VmMemorySourceType.Vulkan => new VmMemorySource.Vulkan(file, HandleType, MemoryIdx, DeviceUuid, DriverUuid, size),
            _ => new VmMemorySource.Descriptor(file, start, size),
        };
    }

    private VmMemorySource.ExternalMapping MakeExternal(DescriptorArgument source)
    {
        if (source.Region is { } region)
        {
            if (region.IsDisposed) throw new GuestMemoryException(GuestMemoryError.RegionDisposed, $"Region {region} was removed; its memory is no longer mapped.");
            return new VmMemorySource.ExternalMapping(region.HostAddress + Offset, HasSize ? Size : source.LengthFrom(Offset, null)) { Owner = region.GetMmapRegion() };
        }

        return source.Number is { } pointer && HasSize
            ? new VmMemorySource.ExternalMapping(pointer + Offset, Size)
            : throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "An external mapping is a region, or an address of this process and a -Size.");
    }

    private VmMemoryRequest.MmapAndRegisterMemory MakeMmap(ICollection<IDisposable> opened)
    {
        var memory = SharedMemory!;
        if (memory.Start != 0) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"Shared memory is mapped from its start, but {memory} begins at offset {memory.Start} of its file.");
        var file = memory.Open(writable: true, opened);
        var mappings = OpenFileMappings(opened);
        return new VmMemoryRequest.MmapAndRegisterMemory(new SharedMemory(file, HasSize ? Size : memory.LengthFrom(0, file)), DestinationOr(memory.Region), (ulong)mappings.Count) { FileMappings = mappings };
    }

    private VmMemoryDestination DestinationOr(GuestRegionMmap? region) => Destination ?? (region is not null
        ? new VmMemoryDestination.GuestPhysicalAddress(region.GuestAddress)
        : throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "Say where in the guest the memory goes: -Destination 0x100000000, or a PCI register, -Destination PciBar:00:03.0/2."));
}
