using System.Runtime.InteropServices;

namespace GuestMemory.Core.Userfault;

/// <summary>What of a VM's state who serves it and who asks what it wrote tell each other.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct UffdVmSync
{
    /// <summary>See <see cref="EventReads"/>.</summary>
    public int Reads;

    /// <summary>Not 0 where every page that came either was write-protected or is marked as written.</summary>
    public int IsTracked;

    /// <summary>See <see cref="UffdVmState.BeginOpening"/>.</summary>
    public ulong Opening;
}
