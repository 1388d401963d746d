using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json.Serialization;
using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// A request about a VM's memory (crosvm's <c>VmMemoryRequest</c>): what a device in another process, or an admin, wants mapped into
/// the guest, taken out, freed or watched.
/// </summary>
public abstract partial record VmMemoryRequest
{
    private static readonly TimeSpan s_look = TimeSpan.FromMilliseconds(50);

    private VmMemoryRequest()
    {
    }

    /// <summary>Executes the request.</summary>
    /// <param name="context">The VM and what is known about its memory; requests on the same one wait for each other.</param>
    /// <param name="tube">The tube of the request, through which <see cref="MmapAndRegisterMemory"/> receives its file mappings.</param>
    /// <param name="remotePeer">Whether another process sent it, whose pointers are invalid here.</param>
    /// <param name="exposeWithViommu">Whether the requesting device is behind the virtio-iommu, so that its memory is mapped there, too.</param>
    /// <param name="cancellation">Ends the wait for other requests, and for file mappings.</param>
    /// <returns>The response. A failure is an <see cref="VmMemoryResponse.Err"/>, never an exception.</returns>
    /// <exception cref="OperationCanceledException">The wait was canceled.</exception>
    public VmMemoryResponse Execute(VmMemoryContext context, Tube? tube = null, bool remotePeer = false, bool exposeWithViommu = false, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(context);
        using var files = FilesFrom(tube, context.FileMappingTimeout);
        files?.ReceiveAll(cancellation);
        return Execute(context, files, remotePeer, exposeWithViommu, cancellation);
    }

    /// <summary>Executes the request after its file mappings were received.</summary>
    internal VmMemoryResponse Execute(VmMemoryContext context, FileMappingReceiver? files, bool remotePeer, bool exposeWithViommu, CancellationToken cancellation)
    {
        // Another request may be freeing much memory.
        while (!context.Lock.TryEnter(s_look)) cancellation.ThrowIfCancellationRequested();
        try
        {
            return Run(new VmMemoryExecution(context, files, remotePeer, exposeWithViommu ? context.IommuClient : null));
        }
#pragma warning disable CA1031 // A service answers whatever happens: a request that fails must not end it.
        catch (Exception exception)
        {
            return new VmMemoryResponse.Err(RequestFailure.Chain(exception));
        }
#pragma warning restore CA1031
        finally
        {
            context.Lock.Exit();
        }
    }

    /// <summary>Receives the packets of file mappings that follow the request in its tube; null where none are announced.</summary>
    internal virtual FileMappingReceiver? FilesFrom(Tube? tube, TimeSpan limit) => null;

    /// <summary>The wire JSON; the descriptors are added to a list, and stand as their index in the text.</summary>
    public string ToJson(ICollection<SafeHandle> descriptors) => Encoding.UTF8.GetString(DescriptorJson.Serialize(this, VmControlJson.Default.VmMemoryRequest, descriptors));

    /// <summary>Reads the wire JSON, whose descriptors are in a list.</summary>
    /// <exception cref="GuestMemoryException">BadJson.</exception>
    public static VmMemoryRequest FromJson(string json, IReadOnlyList<SafeHandle> descriptors) =>
        DescriptorJson.Deserialize(Encoding.UTF8.GetBytes(json), VmControlJson.Default.VmMemoryRequest, descriptors);

    private protected abstract VmMemoryResponse Run(VmMemoryExecution on);

    /// <summary>Reserves one large slot for a PCI register, so that later registrations in it are cheap mappings.</summary>
    /// <param name="Alloc">The register: <see cref="Core.VmControl.Alloc.PciBar"/>.</param>
    /// <param name="Cache">Whether the host or the guest chooses the memory type.</param>
    public sealed partial record PrepareSharedMemoryRegion(Alloc Alloc, MemCacheType Cache) : VmMemoryRequest;

    /// <summary>Maps memory into the guest.</summary>
    /// <param name="Source">The memory.</param>
    /// <param name="Destination">The destination.</param>
    /// <param name="Protection">What may be done with it; exactly Read makes the slot read-only for the guest.</param>
    /// <param name="Cache">Whether the host or the guest chooses the memory type.</param>
    public sealed partial record RegisterMemory(VmMemorySource Source, [property: JsonPropertyName("dest")] VmMemoryDestination Destination,
        [property: JsonPropertyName("prot")] MemoryProtection Protection, MemCacheType Cache) : VmMemoryRequest;

    /// <summary>Maps shared memory into the guest, read-only, with parts of files over parts of it.</summary>
    /// <param name="SharedMemory">The memory.</param>
    /// <param name="Destination">The destination.</param>
    /// <param name="FileMappingCount">How many file mappings follow the request, in packets of up to 253.</param>
    public sealed partial record MmapAndRegisterMemory([property: JsonPropertyName("shm")] SharedMemory SharedMemory, [property: JsonPropertyName("dest")] VmMemoryDestination Destination,
        [property: JsonPropertyName("num_file_mappings")] ulong FileMappingCount) : VmMemoryRequest
    {
        /// <summary>The file mappings: for execution in this process, or for a client to send. Null where they follow in the tube.</summary>
        [JsonIgnore]
        public IReadOnlyList<VmMemoryFileMapping>? FileMappings { get; init; }
    }

    /// <summary>Frees guest memory on the host (a balloon's inflation). Where one range fails, the ranges before it stay freed.</summary>
    /// <param name="Ranges">The ranges.</param>
    public sealed partial record DynamicallyFreeMemoryRanges(IReadOnlyList<VmMemoryRange> Ranges) : VmMemoryRequest;

    /// <summary>Returns freed memory to the guest (a balloon's deflation).</summary>
    /// <param name="Ranges">The ranges.</param>
    public sealed partial record DynamicallyReclaimMemoryRanges(IReadOnlyList<VmMemoryRange> Ranges) : VmMemoryRequest;

    /// <summary>Reports that the balloon has its target size.</summary>
    /// <param name="Size">The bytes.</param>
    public sealed partial record BalloonTargetReached(ulong Size) : VmMemoryRequest;

    /// <summary>Removes registered memory from the guest.</summary>
    /// <param name="RegionId">The id from the response to its registration.</param>
    public sealed partial record UnregisterMemory(ulong RegionId) : VmMemoryRequest;

    /// <summary>Registers or unregisters an eventfd that stores to a guest physical address signal.</summary>
    /// <param name="Request">The registration.</param>
    public sealed partial record IoEventRaw(IoEventUpdateRequest Request) : VmMemoryRequest;
}
