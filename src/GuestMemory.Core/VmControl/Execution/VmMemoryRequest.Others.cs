using GuestMemory.Core.Interop;
using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

public abstract partial record VmMemoryRequest
{
    public sealed partial record UnregisterMemory
    {
        /// <summary>
        /// Upstream removes the entry before it calls the VM, so that a failed request cannot be repeated; here the entry is removed when
        /// the VM has removed the memory. Where only the IOMMU fails, a repeated request sends the IOMMU its command again.
        /// </summary>
        private protected override VmMemoryResponse Run(VmMemoryExecution on)
        {
            if (!on.State.Registered.TryGetValue(RegionId, out var memory))
            {
                if (on.Iommu?.RegisteredMemory.Contains(RegionId) != true) throw new RequestFailure("can't find the memory region when unregistering memory");
                UnmapInIommu(on.Iommu);
                return VmMemoryResponse.Ok.Instance;
            }

            RequestFailure.Within(memory is RegisteredMemory.FixedMapping
                ? "failed to remove memory mapping when unregistering fixed mapping memory"
                : "failed to remove memory region when unregistering dynamic mapping memory", () => Remove(on.Vm, memory));
            on.State.Registered.Remove(RegionId);
            if (memory is RegisteredMemory.DynamicMapping && on.Iommu?.RegisteredMemory.Contains(RegionId) == true) UnmapInIommu(on.Iommu);
            return VmMemoryResponse.Ok.Instance;
        }

        private static bool Remove(IVm vm, RegisteredMemory memory)
        {
            if (memory is RegisteredMemory.FixedMapping part) vm.RemoveMapping(part.Slot, part.Offset, part.Size);
            else vm.RemoveMemoryRegion(memory.Slot).Dispose();
            return true;
        }

        private void UnmapInIommu(VmMemoryRequestIommuClient iommu)
        {
            var response = iommu.Unmap(RegionId);
            if (response is not VirtioIommuResponse.VfioResponse { Result: VirtioIommuVfioResult.Ok })
                throw new RequestFailure($"Unexpected virtio-iommu message response when unregistering memory: Ok({response})");
        }
    }

    public sealed partial record DynamicallyFreeMemoryRanges
    {
        private protected override VmMemoryResponse Run(VmMemoryExecution on) =>
            HandleBalloon(on, Ranges.Select(static range => BalloonEvent.Inflate(new GuestAddress(range.Address), range.Size)), "failed to handle the inflate balloon event when freeing memory ranges dynamically");
    }

    public sealed partial record DynamicallyReclaimMemoryRanges
    {
        private protected override VmMemoryResponse Run(VmMemoryExecution on) =>
            HandleBalloon(on, Ranges.Select(static range => BalloonEvent.Deflate(new GuestAddress(range.Address), range.Size)), "failed to handle the deflate balloon event when reclaiming memory ranges dynamically");
    }

    public sealed partial record BalloonTargetReached
    {
        private protected override VmMemoryResponse Run(VmMemoryExecution on) =>
            HandleBalloon(on, [BalloonEvent.TargetReached(Size)], "failed to handle the target reached balloon event");
    }

    public sealed partial record IoEventRaw
    {
        private protected override VmMemoryResponse Run(VmMemoryExecution on)
        {
            var address = IoEventAddress.Mmio(Request.Address);
            return Request.Register
                ? RequestFailure.Within("failed to register IO event", () => Done(() => on.Vm.RegisterIoEvent(Request.Event, address, Request.Datamatch)))
                : RequestFailure.Within("failed to unregister IO event", () => Done(() => on.Vm.UnregisterIoEvent(Request.Event, address, Request.Datamatch)));
        }
    }

    private static VmMemoryResponse HandleBalloon(VmMemoryExecution on, IEnumerable<BalloonEvent> events, string context) => RequestFailure.Within(context, () => Done(() =>
    {
        foreach (var balloonEvent in events) on.Vm.HandleBalloonEvent(balloonEvent);
    }));

    private static VmMemoryResponse Done(Action action)
    {
        action();
        return VmMemoryResponse.Ok.Instance;
    }
}
