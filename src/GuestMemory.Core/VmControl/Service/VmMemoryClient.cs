using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// Sends requests about a VM's memory to a service (crosvm's <c>VmMemoryClient</c>), one at a time. An error answer is thrown. It owns
/// its tube.
/// </summary>
/// <param name="tube">The tube to the service; owned by the client from then on.</param>
public sealed class VmMemoryClient(Tube tube) : IDisposable
{
    private readonly Tube _tube = tube ?? throw new ArgumentNullException(nameof(tube));

    /// <summary>Connects to the service that listens at a path.</summary>
    /// <param name="path">The path.</param>
    /// <param name="timeout">The time limit for each message; null: none.</param>
    /// <param name="cancellation">Cancels the wait for a service that does not accept.</param>
    /// <exception cref="GuestMemoryException">SocketNotFound, NotASocket, ConnectionRefused, SocketPathTooLong, TubeTimeout.</exception>
    /// <exception cref="SyscallException">EINVAL: the time is zero or negative.</exception>
    /// <exception cref="OperationCanceledException">The wait was canceled.</exception>
    public static VmMemoryClient Connect(string path, TimeSpan? timeout = null, CancellationToken cancellation = default) => new(Tube.Connect(path, timeout, cancellation));

    /// <summary>Reserves a slot for a PCI register.</summary>
    /// <exception cref="GuestMemoryException">RequestFailed, UnexpectedResponse, Disconnected.</exception>
    public void PrepareSharedMemoryRegion(Alloc alloc, MemCacheType cache) => Do(new VmMemoryRequest.PrepareSharedMemoryRegion(alloc, cache));

    /// <summary>Maps memory into the guest.</summary>
    /// <returns>The region id.</returns>
    /// <exception cref="GuestMemoryException">RequestFailed, UnexpectedResponse, Disconnected.</exception>
    public ulong RegisterMemory(VmMemorySource source, VmMemoryDestination destination, MemoryProtection protection, MemCacheType cache) =>
        Registered(new VmMemoryRequest.RegisterMemory(source, destination, protection, cache)).RegionId;

    /// <summary>Maps shared memory into the guest, read-only, with parts of files over parts of it.</summary>
    /// <returns>The slot.</returns>
    /// <exception cref="GuestMemoryException">RequestFailed, UnexpectedResponse, Disconnected.</exception>
    public uint MmapAndRegisterMemory(GuestAddress address, SharedMemory sharedMemory, IReadOnlyList<VmMemoryFileMapping> mappings)
    {
        ArgumentNullException.ThrowIfNull(mappings);
        return Registered(new VmMemoryRequest.MmapAndRegisterMemory(sharedMemory, new VmMemoryDestination.GuestPhysicalAddress(address.Value), (ulong)mappings.Count) { FileMappings = mappings }).Slot;
    }

    /// <summary>Frees guest memory on the host.</summary>
    /// <exception cref="GuestMemoryException">RequestFailed, UnexpectedResponse, Disconnected.</exception>
    public void DynamicallyFreeMemoryRanges(IReadOnlyList<VmMemoryRange> ranges) => Do(new VmMemoryRequest.DynamicallyFreeMemoryRanges(ranges));

    /// <summary>Returns freed memory to the guest.</summary>
    /// <exception cref="GuestMemoryException">RequestFailed, UnexpectedResponse, Disconnected.</exception>
    public void DynamicallyReclaimMemoryRanges(IReadOnlyList<VmMemoryRange> ranges) => Do(new VmMemoryRequest.DynamicallyReclaimMemoryRanges(ranges));

    /// <summary>Removes registered memory from the guest.</summary>
    /// <exception cref="GuestMemoryException">RequestFailed, UnexpectedResponse, Disconnected.</exception>
    public void UnregisterMemory(ulong regionId) => Do(new VmMemoryRequest.UnregisterMemory(regionId));

    /// <summary>Makes stores to a guest physical address signal an eventfd.</summary>
    /// <exception cref="GuestMemoryException">RequestFailed, UnexpectedResponse, Disconnected.</exception>
    public void RegisterIoEvent(SafeHandle eventFd, GuestAddress address, Datamatch datamatch) =>
        Do(new VmMemoryRequest.IoEventRaw(new IoEventUpdateRequest(eventFd, address.Value, datamatch, Register: true)));

    /// <summary>Removes such a registration.</summary>
    /// <exception cref="GuestMemoryException">RequestFailed, UnexpectedResponse, Disconnected.</exception>
    public void UnregisterIoEvent(SafeHandle eventFd, GuestAddress address, Datamatch datamatch) =>
        Do(new VmMemoryRequest.IoEventRaw(new IoEventUpdateRequest(eventFd, address.Value, datamatch, Register: false)));

    /// <summary>Reports that the balloon has its target size.</summary>
    /// <exception cref="GuestMemoryException">RequestFailed, UnexpectedResponse, Disconnected.</exception>
    public void BalloonTargetReached(ulong size) => Do(new VmMemoryRequest.BalloonTargetReached(size));

    /// <summary>Sends any request, with the packets of file mappings that belong to it, and waits for the answer.</summary>
    /// <returns>The answer; errors are answers, too.</returns>
    /// <exception cref="GuestMemoryException">Disconnected (also after one that was left unanswered), TubeTimeout, SendTooManyFds, BadJson; ValueNotSupported: the number of file mappings is not the one that the request announces.</exception>
    /// <exception cref="OperationCanceledException">The wait was canceled; the tube is out of step and must be closed.</exception>
    public VmMemoryResponse Send(VmMemoryRequest request, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(request);
        if (_tube.IsOutOfStep)
            throw new GuestMemoryException(GuestMemoryError.Disconnected, "An earlier request was cancelled before its answer came, so the next answer may belong to it. Connect again.");
        var mappings = request is VmMemoryRequest.MmapAndRegisterMemory mmap ? Announced(mmap) : [];
        _tube.Send(request, VmControlJson.Default.VmMemoryRequest, cancellation: cancellation);
        _tube.IsOutOfStep = true;
        foreach (var chunk in mappings.Chunk(Tube.MaxDescriptors)) _tube.Send(chunk, VmControlJson.Default.VmMemoryFileMappingArray, chunk.Length, cancellation);
        var response = _tube.Receive(VmControlJson.Default.VmMemoryResponse, cancellation: cancellation);
        _tube.IsOutOfStep = false;
        return response;
    }

    /// <summary>Closes the tube.</summary>
    public void Dispose() => _tube.Dispose();

    private static IReadOnlyList<VmMemoryFileMapping> Announced(VmMemoryRequest.MmapAndRegisterMemory request)
    {
        var mappings = request.FileMappings ?? [];
        return (ulong)mappings.Count == request.FileMappingCount
            ? mappings
            : throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"The request announces {request.FileMappingCount} file mappings, but has {mappings.Count}.");
    }

    private void Do(VmMemoryRequest request)
    {
        var response = Send(request);
        if (response is not VmMemoryResponse.Ok) throw Failure(response);
    }

    private VmMemoryResponse.RegisterMemory Registered(VmMemoryRequest request)
    {
        var response = Send(request);
        return response as VmMemoryResponse.RegisterMemory ?? throw Failure(response);
    }

    private static GuestMemoryException Failure(VmMemoryResponse response) => response is VmMemoryResponse.Err error
        ? error.ToException()
        : new GuestMemoryException(GuestMemoryError.UnexpectedResponse, $"The service answered {response}, which does not answer this request.");
}
