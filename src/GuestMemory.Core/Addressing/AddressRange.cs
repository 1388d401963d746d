namespace GuestMemory.Core;

/// <summary>A run of pages in guest memory: dirty pages, for example. (An interval of addresses to allocate is VmControl's AddressInterval.)</summary>
/// <param name="Address">The first guest address.</param>
/// <param name="Size">The length in bytes.</param>
/// <param name="PageCount">The number of pages in it.</param>
public sealed record AddressRange(ulong Address, ulong Size, long PageCount)
{
    /// <summary>The last guest address that belongs to the range.</summary>
    public ulong LastAddress => Address + (Size - 1);
}
