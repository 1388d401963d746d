using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

/// <summary>A request about the host's side of a slot's memory (crosvm's <c>VmMemoryMappingRequest</c>).</summary>
public abstract record VmMemoryMappingRequest
{
    private VmMemoryMappingRequest()
    {
    }

    /// <summary>Executes the request.</summary>
    /// <returns>What became of it; whatever fails is an error number: ENOENT for a slot that is not there, EFAULT outside of it, EINVAL where it is not aligned.</returns>
    public VmResponse Execute(VmMemoryContext context) => VmResponse.Of(context, () =>
    {
        Run(context.Vm);
        return VmResponse.Ok.Instance;
    });

    private protected abstract void Run(IVm vm);

    /// <summary>Writes changes back to the files behind the memory.</summary>
    /// <param name="Slot">The slot.</param>
    /// <param name="Offset">Where in the slot, in bytes; a multiple of the page size.</param>
    /// <param name="Size">The bytes.</param>
    public sealed record MsyncArena(uint Slot, ulong Offset, ulong Size) : VmMemoryMappingRequest
    {
        private protected override void Run(IVm vm) => vm.MsyncMemoryRegion(Slot, Offset, Size);
    }

    /// <summary>Has the host reclaim memory; its content stays.</summary>
    /// <param name="Slot">The slot.</param>
    /// <param name="Offset">Where in the slot, in bytes; a multiple of the page size.</param>
    /// <param name="Size">The bytes.</param>
    public sealed record MadvisePageout(uint Slot, ulong Offset, ulong Size) : VmMemoryMappingRequest
    {
        private protected override void Run(IVm vm) => vm.MadvisePageoutMemoryRegion(Slot, Offset, Size);
    }

    /// <summary>Frees memory, and the file behind it; it reads as zero then.</summary>
    /// <param name="Slot">The slot.</param>
    /// <param name="Offset">Where in the slot, in bytes; a multiple of the page size.</param>
    /// <param name="Size">The bytes.</param>
    public sealed record MadviseRemove(uint Slot, ulong Offset, ulong Size) : VmMemoryMappingRequest
    {
        private protected override void Run(IVm vm) => vm.MadviseRemoveMemoryRegion(Slot, Offset, Size);
    }
}
