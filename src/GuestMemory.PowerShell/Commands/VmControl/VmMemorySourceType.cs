using GuestMemory.Core.Interop;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell;

/// <summary>What kind of memory a request registers: the variants of VmMemorySource.</summary>
public enum VmMemorySourceType
{
    /// <summary>A part of a file.</summary>
    Descriptor,
    /// <summary>A file from its start.</summary>
    SharedMemory,
    /// <summary>Memory that is mapped in this process.</summary>
    ExternalMapping,
    /// <summary>Memory of a GPU.</summary>
    Vulkan,
}
