using System.Runtime.InteropServices;
using System.Text.Json.Serialization;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

/// <summary>A request of a shared file system about the memory that its files are mapped into (crosvm's <c>FsMappingRequest</c>).</summary>
public abstract record FsMappingRequest
{
    private FsMappingRequest()
    {
    }

    /// <summary>Executes the request.</summary>
    /// <returns>The response; a failure is an error number.</returns>
    public VmResponse Execute(VmMemoryContext context) => VmResponse.Of(context, () => Run(context));

    private protected abstract VmResponse Run(VmMemoryContext context);

    /// <summary>Reserves a slot for a PCI register.</summary>
    /// <param name="Alloc">The register: <see cref="Core.VmControl.Alloc.PciBar"/>.</param>
    public sealed record AllocateSharedMemoryRegion(Alloc Alloc) : FsMappingRequest
    {
        private protected override VmResponse Run(VmMemoryContext context)
        {
            if (Alloc is not Core.VmControl.Alloc.PciBar || context.Allocator.Mmio.Get(Alloc) is not var (range, _)) return new VmResponse.Err(Errno.EINVAL);
            if (range.Length is not (> 0 and <= long.MaxValue and var length)) return new VmResponse.Err(Errno.EOVERFLOW);
            var arena = new SlotArena(length);
            try
            {
                return new VmResponse.RegisterMemory(context.Vm.AddMemoryRegion(new GuestAddress(range.Start), arena, readOnly: false, logDirtyPages: false, MemCacheType.CacheCoherent));
            }
            catch
            {
                arena.Dispose();
                throw;
            }
        }
    }

    /// <summary>Maps a part of a file over a part of a slot.</summary>
    /// <param name="Slot">The slot.</param>
    /// <param name="File">The file.</param>
    /// <param name="Size">The bytes.</param>
    /// <param name="FileOffset">Where in the file, in bytes.</param>
    /// <param name="Protection">The protection of the mapping.</param>
    /// <param name="MemOffset">Where in the slot, in bytes; a multiple of the page size.</param>
    public sealed record CreateMemoryMapping(uint Slot, [property: JsonPropertyName("fd")] SafeHandle File, ulong Size, ulong FileOffset,
        [property: JsonPropertyName("prot")] MemoryProtection Protection, ulong MemOffset) : FsMappingRequest
    {
        private protected override VmResponse Run(VmMemoryContext context)
        {
            context.Vm.AddFdMapping(Slot, MemOffset, Size, File, FileOffset, Protection);
            return VmResponse.Ok.Instance;
        }
    }

    /// <summary>Removes the mappings over a part of a slot.</summary>
    /// <param name="Slot">The slot.</param>
    /// <param name="Offset">Where in the slot, in bytes; a multiple of the page size.</param>
    /// <param name="Size">The bytes.</param>
    public sealed record RemoveMemoryMapping(uint Slot, ulong Offset, ulong Size) : FsMappingRequest
    {
        private protected override VmResponse Run(VmMemoryContext context)
        {
            context.Vm.RemoveMapping(Slot, Offset, Size);
            return VmResponse.Ok.Instance;
        }
    }
}
