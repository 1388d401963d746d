using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

public abstract partial record VmMemoryRequest
{
    public sealed partial record MmapAndRegisterMemory
    {
        internal override FileMappingReceiver? FilesFrom(Tube? tube, TimeSpan limit) => FileMappings is null ? new FileMappingReceiver(tube, FileMappingCount, limit) : null;

        private protected override VmMemoryResponse Run(VmMemoryExecution on)
        {
            var arena = Map("failed to build MemoryMapping from shared memory", () =>
                SlotArena.FromMapping(SlotMapping.FromFile(SharedMemory.Descriptor, 0, SharedMemory.Size, MemoryProtection.ReadWrite)));
            try
            {
                foreach (var file in FileMappings ?? on.Files!.Received())
                {
                    Map("failed to add fd mapping when handling mmap and register memory", () =>
                    {
                        arena.AddFdMapping(file.MemOffset, file.Length, file.File, file.FileOffset, MemoryProtection.Read);
                        return arena;
                    });
                }

                var address = on.Allocate(Destination, arena.Size, "VM memory destination allocation fails when handling mmap and register memory");
                var slot = RequestFailure.Within("failed to add memory region when handling mmap and register memory",
                    () => on.Add(address, arena, readOnly: true, MemCacheType.CacheCoherent));
                return on.Registered(address, slot);
            }
            catch
            {
                arena.Dispose();
                throw;
            }
        }

        // Here upstream keeps the mapping's error in the chain; elsewhere it makes an error number of it.
        private static SlotArena Map(string context, Func<SlotArena> map) => RequestFailure.Within(context, () =>
        {
            try
            {
                return map();
            }
            catch (GuestMemoryException exception)
            {
                throw RequestFailure.OfMapping(exception);
            }
        });
    }
}
