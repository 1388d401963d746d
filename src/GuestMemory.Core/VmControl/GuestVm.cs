using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

/// <summary>
/// A virtual machine of this process, by its name, with what requests about its memory need: the addresses of the machine, and what is
/// registered. It owns its VM of KVM. Its properties are plain values; what it is made of is returned by methods.
/// </summary>
public sealed class GuestVm : IDisposable
{
    private readonly Lock _lock = new();
    private readonly List<VmMemoryService> _services = [];
    private readonly KvmVm _vm;
    private readonly VmMemoryContext _context;

    /// <param name="vm">The VM; owned from here on.</param>
    /// <param name="allocator">Its addresses; unless given, those that its memory leaves, see <see cref="SystemAllocator.ForMemory"/>.</param>
    public GuestVm(KvmVm vm, SystemAllocator? allocator = null)
    {
        ArgumentNullException.ThrowIfNull(vm);
        _vm = vm;
        _context = new VmMemoryContext(vm, allocator ?? SystemAllocator.ForMemory(vm.Memory));
    }

    /// <summary>The name.</summary>
    public string Name => _vm.Name;

    /// <summary>The number of the VM in this process.</summary>
    public int Id => _vm.Id;

    /// <summary>The base memory.</summary>
    public GuestMemoryMmap Memory => _vm.Memory;

    /// <summary>The memory slots, as they are now.</summary>
    public IReadOnlyList<KvmSlot> Slots => _vm.Slots;

    /// <summary>How the pages that the guest writes are logged.</summary>
    public DirtyLogMode DirtyLog => _vm.DirtyLog;

    /// <summary>Whether it was removed.</summary>
    public bool IsDisposed => _vm.IsDisposed;

    /// <summary>The VM of KVM behind it; it stays this object's.</summary>
    public KvmVm GetKvmVm() => _vm;

    /// <summary>The context in which requests about its memory are executed.</summary>
    public VmMemoryContext GetContext() => _context;

    /// <summary>The services that take requests for it, and were not stopped, as it is now.</summary>
    public IReadOnlyList<VmMemoryService> GetServices()
    {
        lock (_lock)
        {
            _services.RemoveAll(static service => service.State == VmMemoryServiceState.Stopped);
            return _services.ToArray();
        }
    }

    /// <summary>Gives a device MMIO addresses, so that requests can put memory into them (an ExistingAllocation).</summary>
    /// <param name="size">The bytes.</param>
    /// <param name="alloc">The device's register, as a rule: <see cref="Alloc.PciBar"/>.</param>
    /// <param name="options">What the range should be like; below 4 GiB unless given.</param>
    /// <returns>The first address.</returns>
    /// <exception cref="GuestMemoryException">ExistingAlloc, AllocSizeZero, BadAlignment, OutOfSpace.</exception>
    public ulong AllocateMmio(ulong size, Alloc alloc, MmioOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(alloc);
        lock (_context.Lock) return _context.Allocator.AllocateMmio(size, alloc, alloc.ToString(), options);
    }

    /// <summary>What requests have registered, by region id, as it is now.</summary>
    public IReadOnlyDictionary<ulong, RegisteredMemory> GetRegisteredMemory()
    {
        lock (_context.Lock) return new SortedDictionary<ulong, RegisteredMemory>(_context.RegionState.Registered);
    }

    /// <summary>The holders of MMIO addresses and their addresses, as it is now.</summary>
    public IReadOnlyDictionary<Alloc, AddressInterval> GetMmioAllocations()
    {
        lock (_context.Lock) return _context.Allocator.LowMmio.Allocations.Concat(_context.Allocator.HighMmio.Allocations).ToDictionary();
    }

    /// <summary>Executes a request; see <see cref="VmMemoryRequest.Execute(VmMemoryContext, Tube?, bool, bool, CancellationToken)"/>.</summary>
    /// <param name="request">The request.</param>
    /// <param name="cancellation">Cancels the wait. A system call that has begun continues.</param>
    /// <exception cref="GuestMemoryException">VmDisposed.</exception>
    /// <exception cref="OperationCanceledException">The wait was canceled.</exception>
    public VmMemoryResponse Execute(VmMemoryRequest request, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(request);
        if (IsDisposed) throw Removed();
        // The kernel needs time to free much memory; other requests take microseconds, once no other request is executed.
        return cancellation.CanBeCanceled && request is (VmMemoryRequest.DynamicallyFreeMemoryRanges or VmMemoryRequest.UnregisterMemory)
            ? BlockingAccess.Run(_ => request.Execute(_context, cancellation: cancellation), static () => null, cancellation)
            : request.Execute(_context, cancellation: cancellation);
    }

    /// <summary>Takes requests about the VM's memory from other processes, until the service is stopped or the VM removed.</summary>
    /// <exception cref="GuestMemoryException">VmDisposed; what <see cref="VmMemoryService.Start"/> throws.</exception>
    public VmMemoryService StartService(VmMemoryServiceOptions options)
    {
        lock (_lock)
        {
            if (IsDisposed) throw Removed();
            var service = VmMemoryService.Start(_context, options);
            _services.Add(service);
            return service;
        }
    }

    /// <summary>Stops its services, and ends the VM; see <see cref="KvmVm.Dispose"/>.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            foreach (var service in _services) service.Stop();
            _vm.Dispose();
        }
    }

    /// <inheritdoc/>
    public override string ToString() => Name;

    private GuestMemoryException Removed() => new(GuestMemoryError.VmDisposed, $"The VM '{Name}' was removed.");
}
