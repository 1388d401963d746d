using GuestMemory.Core.Interop;
using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

/// <summary>One execution of a request: its context, its peer, and the steps that several variants share.</summary>
internal sealed record VmMemoryExecution(VmMemoryContext Context, FileMappingReceiver? Files, bool RemotePeer, VmMemoryRequestIommuClient? Iommu)
{
    public IVm Vm => Context.Vm;

    public VmMemoryRegionState State => Context.RegionState;

    /// <summary>The guest address that the memory goes to.</summary>
    public GuestAddress Allocate(VmMemoryDestination destination, ulong size, string context) =>
        new(RequestFailure.Within(context, () => destination.Allocate(Context.Allocator, size)));

    /// <summary>Adds memory to the VM; where that fails, the memory is unmapped.</summary>
    public uint Add(GuestAddress address, SlotMemory mapping, bool readOnly, MemCacheType cache)
    {
        try
        {
            return Vm.AddMemoryRegion(address, mapping, readOnly, logDirtyPages: false, cache);
        }
        catch
        {
            mapping.Dispose();
            throw;
        }
    }

    public VmMemoryResponse Registered(GuestAddress address, uint slot)
    {
        State.Registered[address.Value] = new RegisteredMemory.DynamicMapping(slot);
        return new VmMemoryResponse.RegisterMemory(address.Value, slot);
    }

    /// <summary>Maps; as upstream does, a mapping's error becomes its error number, or EINVAL where it has none.</summary>
    public static T Map<T>(Func<T> map)
    {
        try
        {
            return map();
        }
        catch (GuestMemoryException exception) when (exception is not SyscallException)
        {
            throw RequestFailure.Errno(Errno.EINVAL);
        }
    }
}
