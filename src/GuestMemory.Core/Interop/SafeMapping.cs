using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>A range of mapped memory; unmapped when the last holder of a reference lets go.</summary>
internal sealed class SafeMapping : SafeHandle
{
    private readonly bool _owned;

    public SafeMapping(nint address, nuint length, bool owned = true)
        : base(-1, ownsHandle: true)
    {
        SetHandle(address);
        Length = length;
        _owned = owned;
    }

    public override bool IsInvalid => handle == -1;

    /// <summary>The first address. Valid only while a reference is held.</summary>
    public nint Address => handle;

    public nuint Length { get; }

    protected override bool ReleaseHandle() => !_owned || Mman.TryUnmap(handle, Length) == 0;
}
