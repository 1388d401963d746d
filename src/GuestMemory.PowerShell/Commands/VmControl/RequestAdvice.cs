using GuestMemory.Core;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell.Commands;

/// <summary>What likely helps where a request fails: the answer's texts are those of crosvm, and name an error number at most.</summary>
internal static class RequestAdvice
{
    public static string? For(VmMemoryRequest request, VmMemoryResponse.Err error) => (request, Number(error.Messages[0])) switch
    {
        (VmMemoryRequest.UnregisterMemory, null) when error.Messages[0].StartsWith("can't find", StringComparison.Ordinal) => "Give the RegionId that the registration answered; the VM's GetRegisteredMemory() lists what there is.",
        (VmMemoryRequest.RegisterMemory or VmMemoryRequest.MmapAndRegisterMemory, "22") =>
            "The guest address and every offset must be multiples of the page size, no size may be 0, and a PCI register must have addresses that the memory fits in.",
        (VmMemoryRequest.RegisterMemory or VmMemoryRequest.MmapAndRegisterMemory, "28") => "Base memory of the VM lies there. Choose another -Destination.",
        (VmMemoryRequest.RegisterMemory or VmMemoryRequest.MmapAndRegisterMemory, "17") => "Other memory lies there. Unregister that first, or choose another -Destination.",
        (VmMemoryRequest.RegisterMemory, "13") => "Open the file for reading and writing, or ask for -Protection Read.",
        (VmMemoryRequest.PrepareSharedMemoryRegion, "22") => "Give a PCI register that has addresses: the VM's AllocateMmio gives it some.",
        (VmMemoryRequest.PrepareSharedMemoryRegion, "17") => "The register is prepared already, or other memory lies there.",
        (VmMemoryRequest.DynamicallyFreeMemoryRanges, "5" or "22") => "Each range must lie in one region of the VM's base memory, and begin with a page.",
        (VmMemoryRequest.IoEventRaw, "2") => "No such event is registered: address and datamatch must be those of the registration.",
        (VmMemoryRequest.IoEventRaw, "17") => "An event is registered there already. End that one with -Register:$false.",
        _ => null,
    };

    /// <summary>The error number that a message ends with: "... (os error 22)".</summary>
    private static string? Number(string message)
    {
        const string Mark = " (os error ";
        var at = message.LastIndexOf(Mark, StringComparison.Ordinal);
        return at >= 0 && message.EndsWith(')') ? message[(at + Mark.Length)..^1] : null;
    }
}
