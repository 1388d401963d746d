using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

public abstract partial record VmMemoryRequest
{
    public sealed partial record MmapAndRegisterMemory
    {
        private protected override VmMemoryResponse Run(VmMemoryExecution on)
        {
            // The packets come whatever happens; those that are left in the tube would be taken for requests.
            using var files = new FileMappingReceiver(on, FileMappings is null ? FileMappingCount : 0);
            using var limit = files.OrDrain(static () => RequestFailure.Within("failed to set max count of file descriptors", OpenFilesLimit.Raise));
            var arena = files.OrDrain(() => RequestFailure.Within("failed to build MemoryMapping from shared memory", MapSharedMemory));
            try
            {
                files.Receive();
                foreach (var file in FileMappings ?? files.Mappings)
                {
                    RequestFailure.Within("failed to add fd mapping when handling mmap and register memory", () => VmMemoryExecution.Map(() =>
                    {
                        arena.AddFdMapping(file.MemOffset, file.Length, file.File, file.FileOffset, MemoryProtection.Read);
                        return true;
                    }));
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

        private MemoryMappingArena MapSharedMemory() =>
            VmMemoryExecution.Map(() => MemoryMappingArena.FromMapping(MemoryMapping.FromFile(SharedMemory.Descriptor, 0, SharedMemory.Size, MemoryProtection.ReadWrite)));
    }
}
