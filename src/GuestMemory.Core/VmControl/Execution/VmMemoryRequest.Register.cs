using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

public abstract partial record VmMemoryRequest
{
    public sealed partial record RegisterMemory
    {
        private protected override VmMemoryResponse Run(VmMemoryExecution on)
        {
            if (on.RemotePeer && Source is VmMemorySource.ExternalMapping) throw RequestFailure.Errno(Errno.EPERM);
            return Destination is VmMemoryDestination.ExistingAllocation existing && on.State.Prepared.TryGetValue(existing.Alloc, out var prepared)
                ? MapIntoPrepared(on, existing.Offset, prepared)
                : MapIntoSlot(on);
        }

        private VmMemoryResponse MapIntoPrepared(VmMemoryExecution on, ulong offset, PreparedRegion prepared)
        {
            var (file, fileOffset, size) = Source switch
            {
                VmMemorySource.Descriptor source => (source.File, source.Offset, source.Size),
                VmMemorySource.SharedMemory source => (source.Memory.Descriptor, 0UL, source.Memory.Size),
                _ => throw new RequestFailure($"source {Source.DisplayName} is not compatible with fixed mapping into prepared memory region"),
            };
            RequestFailure.Within("failed to add fd mapping when trying to map to prepared region", () =>
            {
                on.Vm.AddFdMapping(prepared.Slot, offset, size, file, fileOffset, Protection);
                return true;
            });
            var id = prepared.GuestAddress + offset;
            on.State.Registered[id] = new RegisteredMemory.FixedMapping(prepared.Slot, offset, size);
            return new VmMemoryResponse.RegisterMemory(id, prepared.Slot);
        }

        private VmMemoryResponse MapIntoSlot(VmMemoryExecution on)
        {
            var mapping = RequestFailure.Within("gralloc mapping", Map);
            GuestAddress address;
            try
            {
                address = on.Allocate(Destination, mapping.Size, "VM memory destination allocation fails");
            }
            catch
            {
                mapping.Dispose();
                throw;
            }

            var slot = RequestFailure.Within("failed to add memory region when registering memory", () => on.Add(address, mapping, readOnly: Protection == MemoryProtection.Read, Cache));
            if (on.Iommu is { } iommu && Source is VmMemorySource.Descriptor source) MapInIommu(on, iommu, address, source, slot);
            return on.Registered(address, slot);
        }

        private SlotMapping Map() => Source switch
        {
            VmMemorySource.Descriptor source => MapFile(source.File, source.Offset, source.Size),
            VmMemorySource.SharedMemory source => MapFile(source.Memory.Descriptor, 0, source.Memory.Size),
            VmMemorySource.ExternalMapping source => VmMemoryExecution.Map(() => SlotMapping.External(unchecked((nint)source.Pointer), source.Size, source.Owner)),
            _ => throw new RequestFailure("vulkan mapping is not supported without GPU feature"),
        };

        private SlotMapping MapFile(SafeHandle file, ulong offset, ulong size) => VmMemoryExecution.Map(() => SlotMapping.FromFile(file, offset, size, Protection));

        private static void MapInIommu(VmMemoryExecution on, VmMemoryRequestIommuClient iommu, GuestAddress address, VmMemorySource.Descriptor source, uint slot)
        {
            var response = iommu.Map(address.Value, source.Size, source.File);
            if (response is VirtioIommuResponse.VfioResponse { Result: VirtioIommuVfioResult.Ok }) return;
            try
            {
                on.Vm.RemoveMemoryRegion(slot).Dispose();
            }
            catch (SyscallException)
            {
                // The client gets the error of the IOMMU.
            }

            throw new RequestFailure($"Unexpected virtio-iommu message response when registering memory: Ok({response})");
        }
    }
}
