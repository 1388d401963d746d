namespace GuestMemory.Core.Paging;

/// <summary>The architecture of a guest's processors.</summary>
public enum GuestArchitecture
{
    /// <summary>x86-64.</summary>
    X64,
    /// <summary>aarch64.</summary>
    Arm64,
}
