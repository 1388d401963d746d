namespace GuestMemory.Core;

/// <summary>Page sizes, in bytes.</summary>
public static class HostPage
{
    /// <summary>The host's page size: 4096 on x86-64; 4096, 16384 or 65536 on aarch64.</summary>
    public static readonly ulong Size = (ulong)Environment.SystemPageSize;

    internal static bool IsAligned(ulong value, ulong pageSize) => value % pageSize == 0;

    internal static ulong RoundUp(ulong value, ulong pageSize) => checked(value + (pageSize - 1)) / pageSize * pageSize;
}
