using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>A range of mapped memory; unmapped when the last holder of a reference lets go.</summary>
/// <remarks>
/// What is shared (<see cref="Share"/>) is touched without a reference. When it is released its memory goes at once, but the addresses
/// stay taken, by memory that was never touched, until the collector finds that nobody knows them any more.
/// </remarks>
internal sealed class SafeMapping : SafeHandle
{
    private readonly bool _owned;
    private bool _shared;
    private bool _collected;
    private SafeMapping? _remains;

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

    /// <summary>Lets the mapping be touched without a reference, by whoever keeps this object alive.</summary>
    public SafeMapping Share()
    {
        _shared = true;
        return this;
    }

    protected override void Dispose(bool disposing)
    {
        _collected = !disposing;
        base.Dispose(disposing);
    }

    protected override bool ReleaseHandle()
    {
        if (!_owned) return true;
        if (_collected || !_shared) return Mman.TryUnmap(handle, Length) == 0;
        // Where the kernel has no room for other memory there, the old one stays as long as the addresses.
        _ = Mman.TryReplaceByAnonymous(handle, Length);
        _remains = new SafeMapping(handle, Length);
        return true;
    }
}
