namespace GuestMemory.Core.Paging;

/// <summary>What has virtual addresses of its own in a guest's memory: its kernel, or a process.</summary>
public interface IVirtualMemorySource : IGuestMemorySource
{
    /// <summary>The memory by virtual addresses, with the page tables that a virtual address belongs to.</summary>
    /// <param name="virtualAddress">The address; aarch64 has one table for the kernel's addresses and one for the process's.</param>
    GuestVirtualMemory GetVirtualMemory(ulong virtualAddress);
}
