using System.Text;
using System.Text.Json.Serialization.Metadata;

namespace GuestMemory.Core.Tests;

/// <summary>crosvm-vm-control.md 9.</summary>
public sealed class SiblingRequestTests : IDisposable
{
    private readonly FakeVm _vm = new();
    private readonly SafeDescriptor _file = Memfd.CreateSealed("test", 0x10000, 0);
    private readonly VmMemoryContext _context;

    public SiblingRequestTests()
    {
        var allocator = new SystemAllocator(new SystemAllocatorConfig { LowMmio = new AddressInterval(0xd0000000, 0xdfffffff), HighMmio = new AddressInterval(1UL << 36, (1UL << 37) - 1) });
        allocator.LowMmio.Allocate(0x10000, new Alloc.PciBar(0, 3, 0, 2), "bar");
        _context = new VmMemoryContext(_vm, allocator);
    }

    public void Dispose()
    {
        _vm.Dispose();
        _file.Dispose();
    }

    [Theory]
    [InlineData("MsyncArena", "msync")]
    [InlineData("MadvisePageout", "pageout")]
    [InlineData("MadviseRemove", "madviseremove")]
    public void V9_MappingRequests(string variant, string operation)
    {
        var request = RoundTrip($"{{\"{variant}\":{{\"slot\":3,\"offset\":4096,\"size\":8192}}}}", VmControlJson.Default.VmMemoryMappingRequest);
        Assert.Equal("\"Ok\"", Json(request.Execute(_context)));
        Assert.Equal([$"{operation} 3 0x1000 0x2000"], _vm.Calls);
        _vm.Faults[operation] = Errno.ENOENT;
        Assert.Equal("{\"Err\":2}", Json(request.Execute(_context)));
    }

    [Fact]
    public void V9_FsRequests()
    {
        var allocate = RoundTrip("""{"AllocateSharedMemoryRegion":{"PciBar":{"bus":0,"dev":3,"func":0,"bar":2}}}""", VmControlJson.Default.FsMappingRequest);
        Assert.Equal("""{"RegisterMemory":{"slot":1}}""", Json(allocate.Execute(_context)));
        Assert.Equal("""{"Err":17}""", Json(allocate.Execute(_context)));
        Assert.Equal("""{"Err":22}""", Json(new FsMappingRequest.AllocateSharedMemoryRegion(new Alloc.Pstore()).Execute(_context)));
        var create = RoundTrip("""{"CreateMemoryMapping":{"slot":1,"fd":0,"size":4096,"file_offset":8192,"prot":{"read":true,"write":false},"mem_offset":4096}}""", VmControlJson.Default.FsMappingRequest);
        Assert.Equal("\"Ok\"", Json(create.Execute(_context)));
        Assert.Equal("map 1 0x1000 0x1000 from 0x2000 Read", _vm.Calls[^1]);
        var remove = RoundTrip("""{"RemoveMemoryMapping":{"slot":1,"offset":4096,"size":4096}}""", VmControlJson.Default.FsMappingRequest);
        Assert.Equal("\"Ok\"", Json(remove.Execute(_context)));
        Assert.Equal("""{"Err":22}""", Json(new FsMappingRequest.RemoveMemoryMapping(9, 0, 4096).Execute(_context)));
        Assert.Equal("""{"Err":5}""", Json(new FsMappingRequest.RemoveMemoryMapping(1, 1, 4096).Execute(_context)));
    }

    private static string Json(VmResponse response) => Encoding.UTF8.GetString(DescriptorJson.Serialize(response, VmControlJson.Default.VmResponse, []));

    private T RoundTrip<T>(string json, JsonTypeInfo<T> type)
    {
        var value = DescriptorJson.Deserialize(Encoding.UTF8.GetBytes(json), type, [_file]);
        Assert.Equal(json, Encoding.UTF8.GetString(DescriptorJson.Serialize(value, type, [])));
        return value;
    }
}
