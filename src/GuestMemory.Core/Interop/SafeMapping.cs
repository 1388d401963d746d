using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>A range of mapped memory; unmapped when the last reference to it is released.</summary>
/// <remarks>
/// A mapping with <see cref="ReserveAddresses"/> is accessed without a reference. When it is released, its memory goes at once. The
/// addresses stay reserved, by memory that was never touched, until the garbage collector finds that no object knows them: an access
/// that is under way reaches no other memory.
/// </remarks>
internal sealed class SafeMapping : SafeHandle
{
    // Reserved ranges count against vm.max_map_count, and the collector sees nothing of that: many of them make it run.
    private static readonly HandleCollector s_reserved = new("GuestMemory: reserved addresses", 1000);

    private readonly bool _owned;
    private readonly bool _isReservation;
    private bool _reserves;
    private bool _collected;
    private SafeMapping? _reservation;
    private Action? _afterUnmap;

    public SafeMapping(nint address, nuint length, bool owned = true)
        : this(address, length, owned, isReservation: false)
    {
    }

    private SafeMapping(nint address, nuint length, bool owned, bool isReservation)
        : base(-1, ownsHandle: true)
    {
        SetHandle(address);
        Length = length;
        _owned = owned;
        _isReservation = isReservation;
    }

    public override bool IsInvalid => handle == -1;

    /// <summary>The first address. Valid only while a reference is held.</summary>
    public nint Address => handle;

    public nuint Length { get; }

    /// <summary>Keeps the addresses reserved after the release, as long as this object is reachable, so that accesses need no reference.</summary>
    public SafeMapping ReserveAddresses()
    {
        _reserves = true;
        return this;
    }

    /// <summary>Calls an action, which throws nothing, when the memory was unmapped; it may run on the finalizer's thread.</summary>
    public SafeMapping AfterUnmap(Action action)
    {
        _afterUnmap = action;
        return this;
    }

    protected override void Dispose(bool disposing)
    {
        _collected = !disposing;
        base.Dispose(disposing);
    }

    protected override bool ReleaseHandle()
    {
        var released = Unmap();
        _afterUnmap?.Invoke();
        return released;
    }

    private bool Unmap()
    {
        if (!_owned) return true;
        if (_collected || !_reserves)
        {
            if (_isReservation) s_reserved.Remove();
            return Mman.TryUnmap(handle, Length) == 0;
        }

        // Where the kernel has no room for other memory there, the old memory stays as long as the addresses.
        _ = Mman.TryReplaceByAnonymous(handle, Length);
        _reservation = new SafeMapping(handle, Length, owned: true, isReservation: true);
        s_reserved.Add();
        return true;
    }
}
