using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core;

/// <summary>Keeps an array in place as long as it is reachable.</summary>
internal sealed unsafe class ArrayPin : SafeHandleZeroOrMinusOneIsInvalid
{
    public ArrayPin(Array array)
        : base(ownsHandle: true)
    {
        var pin = GCHandle.Alloc(array, GCHandleType.Pinned);
        SetHandle(GCHandle.ToIntPtr(pin));
        Address = (byte*)pin.AddrOfPinnedObject();
    }

    public byte* Address { get; }

    protected override bool ReleaseHandle()
    {
        GCHandle.FromIntPtr(handle).Free();
        return true;
    }
}
