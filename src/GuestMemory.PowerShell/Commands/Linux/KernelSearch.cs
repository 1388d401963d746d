using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Linux;

namespace GuestMemory.PowerShell.Commands;

/// <summary>The search for a kernel, with its progress.</summary>
internal static class KernelSearch
{
    public static GuestKernel Find(Cmdlet cmdlet, GuestMemoryMmap memory, CancellationToken cancellation)
    {
        var progress = new ProgressBar(cmdlet, "Searching guest memory for its kernel", memory.Size);
        try
        {
            return GuestKernel.Find(memory, progress.Report, cancellation);
        }
        finally
        {
            progress.Complete();
        }
    }
}
