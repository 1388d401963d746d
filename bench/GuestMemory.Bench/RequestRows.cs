using System.Diagnostics;
using System.Runtime.InteropServices;
using GuestMemory.Core;
using GuestMemory.Core.Kvm;
using GuestMemory.Core.VmControl;

namespace GuestMemory.Bench;

/// <summary>
/// Requests for a VM's memory on real KVM, through a service and in this process, one figure each: the same as kvm-requests.c does with
/// the bare system calls and binary messages.
/// </summary>
internal sealed class RequestRows : RowSet
{
    private const ulong Base = 0x1_0000_0000;
    private const ulong Size = 0x10000;
    private const int Pairs = 500;
    private const int Many = 5000;

    private readonly GuestRegionMmap _file = new(new MmapRegionBuilder(Size).WithMemfd().Build(), new GuestAddress(0));
    private readonly Vm _few;
    private readonly Vm _many;
    private readonly long[] _times = new long[2 * Pairs];

    public RequestRows()
    {
        _few = new Vm(Memory, 0);
        _many = new Vm(Memory, Many);
    }

    public override string Name => "requests";

    public override string Setup => "64 KiB a region, a descriptor a registration, client and service on one CPU";

    public override string Program => "kvm-requests";

    public override string[] Filters => [""];

    public override Row[] Rows { get; } =
    [
        new("execute in the process", "\"in_process\"", "C + 60 us", 2 * Pairs),
        new("over a socket", "\"socket\"", "C + 60 us", 2 * Pairs),
        new("over a socket, 99th percentile", "\"socket_p99\"", "", 1, Tail: true),
        new("execute in the process, 5000 slots", "\"many_in_process\"", "C + 60 us", 2 * Pairs),
        new("over a socket, 5000 slots", "\"many_socket\"", "C + 60 us", 2 * Pairs),
        new("over a socket, 5000 slots, 99th percentile", "\"many_socket_p99\"", "", 1, Tail: true),
    ];

    public override int Repetitions => 15;

    protected override int WarmUps => 3;

    private SafeHandle Memory => _file.GetFileOffset()!.File;

    public override string Remark(long allocated) => "A row is the mean of registering a region and unregistering it again.";

    protected override double[] Measure()
    {
        var figures = new double[Rows.Length];
        foreach (var (vm, at) in new[] { (_few, 0), (_many, 3) })
        {
            var worst = new List<double>();
            figures[at] = Time(null, () => InProcess(vm));
            figures[at + 1] = Time(null, () => worst.Add(OneByOne(vm)));
            figures[at + 2] = BenchTools.Median(worst.Skip(1));
        }

        return figures;
    }

    private void InProcess(Vm vm)
    {
        for (var i = 0; i < Pairs; i++)
        {
            if (vm.Registration.Execute(vm.Context) is not VmMemoryResponse.RegisterMemory registered) throw new InvalidOperationException("not registered");
            if (new VmMemoryRequest.UnregisterMemory(registered.RegionId).Execute(vm.Context) is not VmMemoryResponse.Ok) throw new InvalidOperationException("not unregistered");
        }
    }

    /// <summary>Registers and unregisters in turn, waiting for every answer; gives the 99th percentile in nanoseconds.</summary>
    private double OneByOne(Vm vm)
    {
        var before = Stopwatch.GetTimestamp();
        for (var i = 0; i < 2 * Pairs; i++)
        {
            if (i % 2 == 0) vm.Client.RegisterMemory(vm.Registration.Source, vm.Registration.Destination, MemoryProtection.ReadWrite, MemCacheType.CacheCoherent);
            else vm.Client.UnregisterMemory(vm.Address);
            var after = Stopwatch.GetTimestamp();
            _times[i] = after - before;
            before = after;
        }

        Array.Sort(_times);
        return _times[2 * Pairs * 99 / 100] * (1e9 / Stopwatch.Frequency);
    }

    /// <summary>A VM with some memory registered, its service, and a client of it.</summary>
    private sealed class Vm
    {
        public Vm(SafeHandle file, int registered)
        {
            var vm = new KvmVm(GuestMemoryMmap.FromRegions([new GuestRegionMmap(new MmapRegionBuilder(Size).Build(), new GuestAddress(0))]));
            var allocator = new SystemAllocator(new SystemAllocatorConfig { LowMmio = new AddressInterval(0xd0000000, 0xdfffffff), HighMmio = new AddressInterval(1UL << 40, (1UL << 41) - 1) });
            Context = new VmMemoryContext(vm, allocator);
            var service = VmMemoryService.Start(Context, new VmMemoryServiceOptions());
            var (near, far) = Tube.Pair();
            service.AddTube(far);
            Client = new VmMemoryClient(near);
            for (var i = 0; i < registered; i++) Client.RegisterMemory(Source(file), To(i), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent);
            Address = To(registered).Address;
            Registration = new VmMemoryRequest.RegisterMemory(Source(file), To(registered), MemoryProtection.ReadWrite, MemCacheType.CacheCoherent);
        }

        public VmMemoryContext Context { get; }

        public VmMemoryClient Client { get; }

        public ulong Address { get; }

        public VmMemoryRequest.RegisterMemory Registration { get; }

        private static VmMemorySource.SharedMemory Source(SafeHandle file) => new(new SharedMemory(file, Size));

        private static VmMemoryDestination.GuestPhysicalAddress To(int index) => new(Base + (ulong)index * Size);
    }
}
