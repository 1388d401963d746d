namespace GuestMemory.Core;

/// <summary>How memory is mapped: the MAP_ bits of <c>mmap(2)</c>.</summary>
[Flags]
public enum MapFlags
{
    /// <summary>No flag.</summary>
    None = 0,
    /// <summary>MAP_SHARED: writes reach the file and every other mapping of it.</summary>
    Shared = 0x01,
    /// <summary>MAP_PRIVATE: writes stay in this mapping.</summary>
    Private = 0x02,
    /// <summary>MAP_FIXED: always refused, since it would replace what is mapped at the address.</summary>
    Fixed = 0x10,
    /// <summary>MAP_ANONYMOUS: no file behind it.</summary>
    Anonymous = 0x20,
    /// <summary>MAP_NORESERVE: no swap space or huge page is set aside.</summary>
    NoReserve = 0x4000,
    /// <summary>MAP_POPULATE: every page is brought in at once.</summary>
    Populate = 0x8000,
    /// <summary>MAP_HUGETLB: huge pages.</summary>
    HugeTlb = 0x40000,
    /// <summary>MAP_HUGE_2MB: huge pages of 2 MiB.</summary>
    Huge2MB = 21 << 26,
    /// <summary>MAP_HUGE_1GB: huge pages of 1 GiB.</summary>
    Huge1GB = 30 << 26,
}
