using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Xen;

/// <summary>What mappings ask of Xen's devices and of the clock. Tests answer in their place.</summary>
internal unsafe class XenCalls
{
    /// <summary>The kernel's answers.</summary>
    public static XenCalls Kernel { get; } = new();

    /// <summary>One ioctl; 0 or the error number.</summary>
    public virtual int Ioctl(SafeHandle device, uint request, void* argument) => XenApi.TryIoctl(device, request, argument);

    /// <summary>Waits.</summary>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    public virtual void Pause(TimeSpan time, CancellationToken cancellation)
    {
        cancellation.WaitHandle.WaitOne(time);
        cancellation.ThrowIfCancellationRequested();
    }
}
