using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;

namespace GuestMemory.Core.Tests;

/// <summary>crosvm-vm-control.md 1.5, 11.1 and 11.2: the exact text, both ways.</summary>
public sealed class WireJsonTests : IDisposable
{
    private readonly SafeHandle[] _files = [EventFd.Create(), EventFd.Create()];

    public void Dispose()
    {
        foreach (var file in _files) file.Dispose();
    }

    [Theory]
    [InlineData("""{"RegisterMemory":{"source":{"Descriptor":{"descriptor":0,"offset":4096,"size":8192}},"dest":{"ExistingAllocation":{"allocation":{"PciBar":{"bus":0,"dev":3,"func":0,"bar":2}},"offset":0}},"prot":{"read":true,"write":true},"cache":"CacheCoherent"}}""")]
    [InlineData("""{"RegisterMemory":{"source":{"SharedMemory":{"descriptor":0,"size":65536}},"dest":{"GuestPhysicalAddress":4294967296},"prot":{"read":true,"write":false},"cache":"CacheNonCoherent"}}""")]
    [InlineData("""{"RegisterMemory":{"source":{"ExternalMapping":{"ptr":18446744073709551615,"size":18446744073709551615}},"dest":{"GuestPhysicalAddress":18446744073709551615},"prot":{"read":false,"write":false},"cache":"CacheCoherent"}}""")]
    [InlineData("""{"RegisterMemory":{"source":{"Vulkan":{"descriptor":0,"handle_type":1,"memory_idx":2,"device_uuid":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,255],"driver_uuid":[9,9,9,9,9,9,9,9,9,9,9,9,9,9,9,9],"size":4096}},"dest":{"GuestPhysicalAddress":0},"prot":{"read":false,"write":true},"cache":"CacheCoherent"}}""")]
    [InlineData("""{"PrepareSharedMemoryRegion":{"alloc":{"PciBar":{"bus":0,"dev":3,"func":0,"bar":2}},"cache":"CacheCoherent"}}""")]
    [InlineData("""{"PrepareSharedMemoryRegion":{"alloc":{"Anon":18446744073709551615},"cache":"CacheCoherent"}}""")]
    [InlineData("""{"PrepareSharedMemoryRegion":{"alloc":"GpuRenderNode","cache":"CacheCoherent"}}""")]
    [InlineData("""{"PrepareSharedMemoryRegion":{"alloc":{"PmemDevice":1},"cache":"CacheCoherent"}}""")]
    [InlineData("""{"PrepareSharedMemoryRegion":{"alloc":"Pstore","cache":"CacheCoherent"}}""")]
    [InlineData("""{"PrepareSharedMemoryRegion":{"alloc":{"PciBridgeWindow":{"bus":1,"dev":2,"func":3}},"cache":"CacheCoherent"}}""")]
    [InlineData("""{"PrepareSharedMemoryRegion":{"alloc":{"PciBridgePrefetchWindow":{"bus":1,"dev":2,"func":3}},"cache":"CacheCoherent"}}""")]
    [InlineData("""{"PrepareSharedMemoryRegion":{"alloc":{"FileBacked":7},"cache":"CacheCoherent"}}""")]
    [InlineData("""{"MmapAndRegisterMemory":{"shm":{"descriptor":0,"size":1048576},"dest":{"GuestPhysicalAddress":8589934592},"num_file_mappings":2}}""")]
    [InlineData("""{"DynamicallyFreeMemoryRanges":{"ranges":[[4096,8192],[1048576,4096]]}}""")]
    [InlineData("""{"DynamicallyReclaimMemoryRanges":{"ranges":[]}}""")]
    [InlineData("""{"BalloonTargetReached":{"size":268435456}}""")]
    [InlineData("""{"UnregisterMemory":4294967296}""")]
    [InlineData("""{"IoEventRaw":{"event":0,"addr":4096,"datamatch":{"U32":5},"register":true}}""")]
    [InlineData("""{"IoEventRaw":{"event":0,"addr":18446744073709551615,"datamatch":{"U64":18446744073709551615},"register":false}}""")]
    [InlineData("""{"IoEventRaw":{"event":0,"addr":0,"datamatch":"AnyLength","register":false}}""")]
    [InlineData("""{"IoEventRaw":{"event":0,"addr":0,"datamatch":{"U8":null},"register":false}}""")]
    [InlineData("""{"IoEventRaw":{"event":0,"addr":0,"datamatch":{"U16":65535},"register":false}}""")]
    public void V11_2_Requests(string json)
    {
        var request = VmMemoryRequest.FromJson(json, _files[..1]);
        var sent = new List<SafeHandle>();
        Assert.Equal(json, request.ToJson(sent));
        Assert.Equal(json.Contains("\"descriptor\":0", StringComparison.Ordinal) || json.Contains("\"event\":0", StringComparison.Ordinal) ? [_files[0]] : [], sent);
    }

    [Fact]
    public void V11_2_FileMappings()
    {
        const string Json = """[{"file":0,"length":4096,"mem_offset":0,"file_offset":0},{"file":1,"length":8192,"mem_offset":4096,"file_offset":16384}]""";
        RoundTrip(Json, VmControlJson.Default.VmMemoryFileMappingArray, _files);
    }

    [Theory]
    [InlineData("\"Ok\"")]
    [InlineData("""{"RegisterMemory":{"region_id":4294967296,"slot":7}}""")]
    [InlineData("""{"Err":["root cause","context 1","context 2"]}""")]
    public void V11_2_Responses(string json) => RoundTrip(json, VmControlJson.Default.VmMemoryResponse);

    [Theory]
    [InlineData("""{"VfioCommand":{"VfioDeviceAdd":{"endpoint_addr":24,"wrapper_id":1,"container":0}}}""")]
    [InlineData("""{"VfioCommand":{"VfioDeviceDel":{"endpoint_addr":24}}}""")]
    [InlineData("""{"VfioCommand":{"VfioDmabufMap":{"region_id":1,"gpa":2,"size":3,"dma_buf":0}}}""")]
    [InlineData("""{"VfioCommand":{"VfioDmabufUnmap":4294967296}}""")]
    public void IommuRequests(string json) => RoundTrip(json, VmControlJson.Default.VirtioIommuRequest, _files);

    [Theory]
    [InlineData("\"Ok\"")]
    [InlineData("""{"Err":22}""")]
    [InlineData("""{"VfioResponse":"Ok"}""")]
    [InlineData("""{"VfioResponse":"NotInPCIRanges"}""")]
    [InlineData("""{"VfioResponse":"NoSuchMappedDmabuf"}""")]
    public void IommuResponses(string json) => RoundTrip(json, VmControlJson.Default.VirtioIommuResponse);

    [Fact]
    public void AllocRanges()
    {
        RoundTrip("""{"start":0,"end":18446744073709551615}""", VmControlJson.Default.AddressInterval);
        Assert.Contains("other", Failure("""{"start":0,"end":1,"other":2}""", VmControlJson.Default.AddressInterval), StringComparison.Ordinal);
    }

    [Fact]
    public void V11_1_ErrorChain()
    {
        var error = Assert.IsType<VmMemoryResponse.Err>(Read("""{"Err":["root cause","context 1","context 2"]}""", VmControlJson.Default.VmMemoryResponse));
        Assert.Equal("context 2", error.Outermost);
        Assert.Equal("context 2: context 1: root cause", error.Chain);
        Assert.Equal("Vm memory response error: context 2", error.ToString());
        Failure("""{"Err":[]}""", VmControlJson.Default.VmMemoryResponse);
    }

    [Theory]
    [InlineData("""[{"file":0,"length":1,"mem_offset":0,"file_offset":0},{"file":0,"length":1,"mem_offset":0,"file_offset":0}]""", "already taken")]
    [InlineData("""[{"file":5,"length":1,"mem_offset":0,"file_offset":0}]""", "out of bounds")]
    [InlineData("""[{"file":-1,"length":1,"mem_offset":0,"file_offset":0}]""", "out of bounds")]
    [InlineData("""[{"file":1.5,"length":1,"mem_offset":0,"file_offset":0}]""", "number of its place")]
    [InlineData("""[{"file":"0","length":1,"mem_offset":0,"file_offset":0}]""", "number of its place")]
    public void V11_2_DescriptorIndices(string json, string expected) =>
        Assert.Contains(expected, Failure(json, VmControlJson.Default.VmMemoryFileMappingArray, _files[0]), StringComparison.Ordinal);

    /// <summary>As serde: names are exact, every member is there once, numbers are integers that fit.</summary>
    [Theory]
    [InlineData("")]
    [InlineData("null")]
    [InlineData("1")]
    [InlineData("[]")]
    [InlineData("{}")]
    [InlineData("\"Ok\"")]
    [InlineData("\"UnregisterMemory\"")]
    [InlineData("{\"UnregisterMemory\":4294967296")]
    [InlineData("{\"UnregisterMemory\":4294967296}}")]
    [InlineData("{\"UnregisterMemory\":4294967296}x")]
    [InlineData("{\"UnregisterMemory\":18446744073709551616}")]
    [InlineData("{\"UnregisterMemory\":-1}")]
    [InlineData("{\"UnregisterMemory\":1.0}")]
    [InlineData("{\"UnregisterMemory\":1e3}")]
    [InlineData("{\"UnregisterMemory\":\"1\"}")]
    [InlineData("{\"UnregisterMemory\":null}")]
    [InlineData("{\"unregisterMemory\":1}")]
    [InlineData("{\"UnregisterMemory\":1,\"BalloonTargetReached\":{\"size\":1}}")]
    [InlineData("{\"BalloonTargetReached\":{}}")]
    [InlineData("{\"BalloonTargetReached\":null}")]
    [InlineData("{\"BalloonTargetReached\":{\"Size\":1}}")]
    [InlineData("{\"BalloonTargetReached\":{\"size\":1,\"size\":2}}")]
    [InlineData("{\"PrepareSharedMemoryRegion\":{\"alloc\":{\"PciBar\":{\"bus\":256,\"dev\":3,\"func\":0,\"bar\":2}},\"cache\":\"CacheCoherent\"}}")]
    [InlineData("{\"PrepareSharedMemoryRegion\":{\"alloc\":null,\"cache\":\"CacheCoherent\"}}")]
    [InlineData("{\"PrepareSharedMemoryRegion\":{\"alloc\":\"Pstore\",\"cache\":\"cachecoherent\"}}")]
    [InlineData("{\"PrepareSharedMemoryRegion\":{\"alloc\":\"Pstore\",\"cache\":0}}")]
    [InlineData("{\"DynamicallyFreeMemoryRanges\":{\"ranges\":[[1]]}}")]
    [InlineData("{\"DynamicallyFreeMemoryRanges\":{\"ranges\":[[1,2,3]]}}")]
    [InlineData("{\"DynamicallyFreeMemoryRanges\":{\"ranges\":null}}")]
    [InlineData("{\"IoEventRaw\":{\"event\":0,\"addr\":0,\"datamatch\":{\"U8\":256},\"register\":false}}")]
    [InlineData("{\"IoEventRaw\":{\"event\":0,\"addr\":0,\"datamatch\":{\"U8\":1,\"U16\":1},\"register\":false}}")]
    [InlineData("{\"IoEventRaw\":{\"event\":0,\"addr\":0,\"datamatch\":\"U8\",\"register\":false}}")]
    [InlineData("{\"IoEventRaw\":{\"event\":null,\"addr\":0,\"datamatch\":\"AnyLength\",\"register\":false}}")]
    [InlineData("{\"RegisterMemory\":{\"source\":{\"ExternalMapping\":{\"ptr\":0,\"size\":0}},\"dest\":{\"GuestPhysicalAddress\":0},\"prot\":{\"read\":true},\"cache\":\"CacheCoherent\"}}")]
    [InlineData("{\"RegisterMemory\":{\"source\":{\"Vulkan\":{\"descriptor\":0,\"handle_type\":1,\"memory_idx\":2,\"device_uuid\":[0],\"driver_uuid\":[0],\"size\":4096}},\"dest\":{\"GuestPhysicalAddress\":0},\"prot\":{\"read\":true,\"write\":true},\"cache\":\"CacheCoherent\"}}")]
    public void WhatIsNotARequest(string json) => Failure(json, VmControlJson.Default.VmMemoryRequest, _files);

    [Fact]
    public void WhatIsDeepIsNotRead() => Failure(new string('[', 1000) + new string(']', 1000), VmControlJson.Default.VmMemoryRequest);

    [Fact]
    public void UnknownMembersAreIgnored() =>
        Assert.Equal(new VmMemoryRequest.BalloonTargetReached(5), VmMemoryRequest.FromJson("""{"BalloonTargetReached":{"new":[{"a":1}],"size":5}}""", []));

    [Fact]
    public void AUnitMayHaveNull() => Assert.Equal(VmMemoryResponse.Ok.Instance, Read("""{"Ok":null}""", VmControlJson.Default.VmMemoryResponse));

    [Fact]
    public void AProtectionThatCannotBeAskedForIsNotWritten()
    {
        var request = new VmMemoryRequest.RegisterMemory(new VmMemorySource.ExternalMapping(0, 0), new VmMemoryDestination.GuestPhysicalAddress(0), MemoryProtection.Execute, MemCacheType.CacheCoherent);
        Assert.Equal(GuestMemoryError.BadJson, Assert.Throws<GuestMemoryException>(() => request.ToJson([])).Error);
    }

    [Fact]
    public void ADescriptorNeedsAListToGoAlongIn()
    {
        Assert.Throws<JsonException>(() => JsonSerializer.Serialize(new SharedMemory(_files[0], 1), VmControlJson.Default.SharedMemory));
        Assert.Throws<JsonException>(() => JsonSerializer.Deserialize("{\"descriptor\":0,\"size\":1}", VmControlJson.Default.SharedMemory));
    }

    private static void RoundTrip<T>(string json, JsonTypeInfo<T> type, params SafeHandle[] files) =>
        Assert.Equal(json, Encoding.UTF8.GetString(DescriptorJson.Serialize(Read(json, type, files), type, [])));

    private static T Read<T>(string json, JsonTypeInfo<T> type, params SafeHandle[] files) => DescriptorJson.Deserialize(Encoding.UTF8.GetBytes(json), type, files);

    private static string Failure<T>(string json, JsonTypeInfo<T> type, params SafeHandle[] files)
    {
        var failure = Assert.Throws<GuestMemoryException>(() => Read(json, type, files));
        Assert.Equal(GuestMemoryError.BadJson, failure.Error);
        return failure.Message;
    }
}
