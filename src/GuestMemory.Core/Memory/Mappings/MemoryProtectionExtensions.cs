namespace GuestMemory.Core;

/// <summary>Asks a protection what it allows (vm-memory's Permissions).</summary>
public static class MemoryProtectionExtensions
{
    /// <summary>Whether everything that is requested is allowed; to request nothing always is.</summary>
    public static bool Allows(this MemoryProtection protection, MemoryProtection requested) => (protection & requested) == requested;

    /// <summary>Whether writing is allowed.</summary>
    public static bool HasWrite(this MemoryProtection protection) => protection.Allows(MemoryProtection.Write);
}
