using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VmControl;

public abstract partial record VmMemoryRequest
{
    public sealed partial record PrepareSharedMemoryRegion
    {
        private protected override VmMemoryResponse Run(VmMemoryExecution on) => RequestFailure.Within("failed to prepare shared memory region", () => Prepare(on));

        private VmMemoryResponse Prepare(VmMemoryExecution on)
        {
            // Upstream aborts the process here.
            if (on.Iommu is not null) throw new RequestFailure("a shared memory region cannot be prepared for a device behind the virtio-iommu");
            if (!on.Context.PreparesSharedMemory) return VmMemoryResponse.Ok.Instance;
            if (Alloc is not Core.VmControl.Alloc.PciBar || on.Context.Allocator.Mmio.Get(Alloc) is not var (range, _)) throw RequestFailure.Errno(Errno.EINVAL);
            if (range.Length is not (> 0 and <= long.MaxValue and var length)) throw RequestFailure.Errno(Errno.ERANGE);
            var arena = VmMemoryExecution.Map(() => new SlotArena(length));
            var slot = on.Add(new GuestAddress(range.Start), arena, readOnly: false, Cache);
            on.State.Prepared[Alloc] = new PreparedRegion(range.Start, slot);
            return VmMemoryResponse.Ok.Instance;
        }
    }
}
