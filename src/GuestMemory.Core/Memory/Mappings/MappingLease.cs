using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>Holds a mapping open; its address is good until disposal.</summary>
internal readonly ref struct MappingLease
{
    private readonly SafeMapping? _mapping;

    public MappingLease(SafeMapping mapping)
    {
        var taken = false;
        mapping.DangerousAddRef(ref taken);
        Debug.Assert(taken);
        _mapping = mapping;
    }

    public nint Address => _mapping!.Address;

    public nuint Length => _mapping!.Length;

    public void Dispose() => _mapping?.DangerousRelease();
}
