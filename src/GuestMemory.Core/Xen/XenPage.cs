namespace GuestMemory.Core.Xen;

/// <summary>Xen's pages: 4096 bytes on every machine, whatever the kernel's are.</summary>
public static class XenPage
{
    /// <summary>The bytes of a page.</summary>
    public const ulong Size = 4096;

    /// <summary>The most pages of one mapping, which the request lists one by one: 512 GiB.</summary>
    internal const ulong MaxCount = 1 << 27;

    /// <summary>How many pages hold so many bytes.</summary>
    internal static ulong Count(ulong bytes) => bytes / Size + (bytes % Size == 0 ? 0UL : 1UL);
}
