using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>Keeps a handle open for as long as its number is used.</summary>
internal readonly ref struct DescriptorLease
{
    private readonly SafeHandle? _handle;

    public DescriptorLease(SafeHandle handle)
    {
        var taken = false;
        handle.DangerousAddRef(ref taken);
        _handle = handle;
    }

    public int Number => (int)_handle!.DangerousGetHandle();

    public void Dispose() => _handle?.DangerousRelease();
}
