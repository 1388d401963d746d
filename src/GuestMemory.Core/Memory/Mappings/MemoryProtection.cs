namespace GuestMemory.Core;

/// <summary>
/// What may be done with mapped memory: the PROT_ bits of <c>mmap(2)</c>, and vm-memory's Permissions, whose numbers are the same.
/// </summary>
[Flags]
public enum MemoryProtection
{
    /// <summary>PROT_NONE: nothing.</summary>
    None = 0,
    /// <summary>PROT_READ.</summary>
    Read = 1,
    /// <summary>PROT_WRITE.</summary>
    Write = 2,
    /// <summary>Both.</summary>
    ReadWrite = Read | Write,
    /// <summary>PROT_EXEC.</summary>
    Execute = 4,
}
