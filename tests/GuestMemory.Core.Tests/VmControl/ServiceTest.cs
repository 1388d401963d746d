using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>A service on a fake VM, over a real socket, and a client of it.</summary>
public abstract class ServiceTest : IDisposable
{
    protected const ulong Address = 0x100000;

    private protected ServiceTest()
    {
        var allocator = new SystemAllocator(new SystemAllocatorConfig { LowMmio = new AddressInterval(0xd0000000, 0xdfffffff), HighMmio = new AddressInterval(1UL << 36, (1UL << 37) - 1) });
        allocator.LowMmio.Allocate(0x10000, new Alloc.PciBar(0, 3, 0, 2), "bar");
        Context = new VmMemoryContext(Vm, allocator) { PreparesSharedMemory = true, FileMappingTimeout = TimeSpan.FromMilliseconds(200) };
        Service = VmMemoryService.Start(Context, new VmMemoryServiceOptions { SocketPath = Folder["vm.sock"] });
        Client = VmMemoryClient.Connect(Folder["vm.sock"]);
        Host.Until(() => Service.ConnectionCount == 1);
    }

    private protected TestFolder Folder { get; } = new();

    private protected FakeVm Vm { get; } = new();

    private protected SafeDescriptor Memfd { get; } = Interop.Memfd.CreateSealed("test", 0x10000, 0);

    private protected VmMemoryContext Context { get; }

    private protected VmMemoryService Service { get; }

    private protected VmMemoryClient Client { get; }

    public void Dispose()
    {
        Client.Dispose();
        Service.Dispose();
        Vm.Dispose();
        Memfd.Dispose();
        Folder.Dispose();
    }

    private protected static Tube Serve(VmMemoryService service)
    {
        var (near, far) = Tube.Pair();
        service.AddTube(far);
        return near;
    }

    private protected VmMemoryFileMapping[] Files(int count) => [.. Enumerable.Repeat(new VmMemoryFileMapping(Memfd, 0x1000, 0, 0), count)];

    private protected SharedMemory Shared() => new(Memfd, 0x10000);

    private protected VmMemorySource.SharedMemory Memory() => new(new SharedMemory(Memfd, 0x1000));

    private protected static VmMemoryDestination.GuestPhysicalAddress To(ulong address) => new(address);

    private protected static IReadOnlyList<string> Errors(VmMemoryResponse response) => Assert.IsType<VmMemoryResponse.Err>(response).Messages;

    private protected void Raw(Tube peer, string packet, int descriptors) => Assert.Equal(Encoding.UTF8.GetByteCount(packet), TrySend(peer, packet, descriptors));

    private protected nint TrySend(Tube peer, string packet, int descriptors) => UnixSocket.TrySend(peer.Socket, Encoding.UTF8.GetBytes(packet), [.. Enumerable.Repeat(Memfd.Number, descriptors)]);
}
