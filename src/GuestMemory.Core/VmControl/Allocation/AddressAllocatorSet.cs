namespace GuestMemory.Core.VmControl;

/// <summary>
/// Several allocators as one (crosvm's <c>AddressAllocatorSet</c>): each operation tries one after the other, and fails as the last
/// one failed.
/// </summary>
public sealed class AddressAllocatorSet
{
    private readonly AddressAllocator[] _allocators;

    /// <summary>A set; the order is the order of asking.</summary>
    public AddressAllocatorSet(params IEnumerable<AddressAllocator> allocators) => _allocators = [.. allocators];

    /// <summary>For a debugger and for logs: what each allocator says.</summary>
    public override string ToString() => string.Join("; ", _allocators.AsEnumerable());

    /// <summary>See <see cref="AddressAllocator.AllocateWithAlign"/>.</summary>
    /// <exception cref="GuestMemoryException">The last allocator's; OutOfSpace where there is none.</exception>
    public ulong AllocateWithAlign(ulong size, Alloc alloc, string tag, ulong alignment)
    {
        var range = AddressInterval.Empty;
        return AddressAllocator.Start(First(allocator => allocator.TryAllocate(size, alloc, tag, alignment, reverse: false, out range)), range);
    }

    /// <summary>See <see cref="AddressAllocator.Allocate"/>.</summary>
    /// <exception cref="GuestMemoryException">The last allocator's; OutOfSpace where there is none.</exception>
    public ulong Allocate(ulong size, Alloc alloc, string tag)
    {
        var range = AddressInterval.Empty;
        return AddressAllocator.Start(First(allocator => allocator.TryAllocate(size, alloc, tag, null, reverse: false, out range)), range);
    }

    /// <summary>See <see cref="AddressAllocator.AllocateAt"/>.</summary>
    /// <exception cref="GuestMemoryException">The last allocator's; OutOfSpace where there is none.</exception>
    public void AllocateAt(AddressInterval range, Alloc alloc, string tag) => AddressAllocator.Check(First(allocator => allocator.TryAllocateAt(range, alloc, tag)));

    /// <summary>See <see cref="AddressAllocator.Release"/>.</summary>
    /// <exception cref="GuestMemoryException">The last allocator's; OutOfSpace where there is none.</exception>
    public AddressInterval Release(Alloc alloc)
    {
        var range = AddressInterval.Empty;
        AddressAllocator.Check(First(allocator => allocator.TryRelease(alloc, out range)));
        return range;
    }

    /// <summary>See <see cref="AddressAllocator.Get"/>.</summary>
    public (AddressInterval Range, string Tag)? Get(Alloc alloc)
    {
        foreach (var allocator in _allocators)
        {
            if (allocator.Get(alloc) is { } entry) return entry;
        }

        return null;
    }

    /// <summary>See <see cref="AddressAllocator.AddressFromPciOffset"/>.</summary>
    /// <exception cref="GuestMemoryException">The last allocator's; OutOfSpace where there is none.</exception>
    public ulong AddressFromPciOffset(Alloc alloc, ulong offset, ulong size) => AddressAllocator.Start(TryAddressFromPciOffset(alloc, offset, size, out var range), range);

    internal GuestMemoryException? TryAddressFromPciOffset(Alloc alloc, ulong offset, ulong size, out AddressInterval range)
    {
        var found = AddressInterval.Empty;
        var error = First(allocator => allocator.TryAddressFromPciOffset(alloc, offset, size, out found));
        range = found;
        return error;
    }

    private GuestMemoryException? First(Func<AddressAllocator, GuestMemoryException?> operation)
    {
        var error = AddressAllocator.OutOfSpace("There is no allocator in the set.");
        foreach (var allocator in _allocators)
        {
            var failure = operation(allocator);
            if (failure is null) return null;
            error = failure;
        }

        return error;
    }
}
