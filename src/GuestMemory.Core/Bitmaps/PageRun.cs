using System.Runtime.InteropServices;

namespace GuestMemory.Core;

/// <summary>Consecutive pages that are all dirty, as many as there are.</summary>
/// <param name="First">The number of the first page.</param>
/// <param name="End">The number of the page after the last one.</param>
[StructLayout(LayoutKind.Sequential)]
public readonly record struct PageRun(long First, long End)
{
    /// <summary>The number of pages.</summary>
    public long Count => End - First;
}
