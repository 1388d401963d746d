using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

/// <summary>A request about the host's side of a slot's memory (crosvm's <c>VmMemoryMappingRequest</c>).</summary>
public abstract record VmMemoryMappingRequest
{
    private VmMemoryMappingRequest()
    {
    }

    /// <summary>Executes the request.</summary>
    /// <returns>The response; a failure is an error number: ENOENT: no such slot; EFAULT: outside of it; EINVAL: not aligned.</returns>
    public VmResponse Execute(VmMemoryContext context) => VmResponse.Of(context, () =>
    {
        Run(context.Vm);
        return VmResponse.Ok.Instance;
    });

    private protected abstract void Run(IVm vm);

    /// <summary>Writes changes back to the files of the memory.</summary>
    /// <param name="Slot">The slot.</param>
    /// <param name="Offset">Where in the slot, in bytes; a multiple of the page size.</param>
    /// <param name="Size">The bytes.</param>
    public sealed record MsyncArena(uint Slot, ulong Offset, ulong Size) : VmMemoryMappingRequest
    {
        private protected override void Run(IVm vm) => vm.MsyncMemoryRegion(Slot, Offset, Size);
    }

    /// <summary>Pages memory out; its content stays.</summary>
    /// <param name="Slot">The slot.</param>
    /// <param name="Offset">Where in the slot, in bytes; a multiple of the page size.</param>
    /// <param name="Size">The bytes.</param>
    public sealed record MadvisePageout(uint Slot, ulong Offset, ulong Size) : VmMemoryMappingRequest
    {
        private protected override void Run(IVm vm) => vm.MadvisePageoutMemoryRegion(Slot, Offset, Size);
    }

    /// <summary>Frees memory and the part of its file; it then reads as zero.</summary>
    /// <param name="Slot">The slot.</param>
    /// <param name="Offset">Where in the slot, in bytes; a multiple of the page size.</param>
    /// <param name="Size">The bytes.</param>
    public sealed record MadviseRemove(uint Slot, ulong Offset, ulong Size) : VmMemoryMappingRequest
    {
        private protected override void Run(IVm vm) => vm.MadviseRemoveMemoryRegion(Slot, Offset, Size);
    }
}
