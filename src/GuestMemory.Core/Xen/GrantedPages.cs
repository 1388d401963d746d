using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Xen;

/// <summary>Pages that another domain grants, by their references: mapped and unmapped through gntdev.</summary>
internal sealed unsafe class GrantedPages
{
    // Requests for so many bytes lie on the stack: 64 references.
    private const int Few = 16 + (64 * 8);

    private readonly XenCalls _calls;
    private readonly SafeFileHandle _device;
    private readonly ushort _domain;
    private readonly uint[]? _references;
    private readonly uint _first;

    /// <param name="calls">The device's answers.</param>
    /// <param name="device">gntdev.</param>
    /// <param name="domain">The domain that grants.</param>
    /// <param name="first">The reference of the first page, which those of the others follow.</param>
    /// <param name="references">The reference of each page instead.</param>
    public GrantedPages(XenCalls calls, SafeFileHandle device, ushort domain, uint first, uint[]? references)
    {
        _calls = calls;
        _device = device;
        _domain = domain;
        _first = first;
        _references = references;
    }

    /// <summary>The reference of a page.</summary>
    public uint ReferenceOf(ulong page) => _references is null ? _first + (uint)page : _references[page];

    /// <summary>Whether a page of these pages is one of others; both have so many.</summary>
    public bool Overlaps(ulong count, GrantedPages other, ulong otherCount)
    {
        if (_references is null && other._references is null) return _first < other._first ? other._first - _first < count : _first - other._first < otherCount;
        var mine = new HashSet<uint>();
        for (ulong page = 0; page < count; page++) mine.Add(ReferenceOf(page));
        for (ulong page = 0; page < otherCount; page++)
        {
            if (mine.Contains(other.ReferenceOf(page))) return true;
        }

        return false;
    }

    /// <summary>Maps pages. The grant goes with the mapping, after it was unmapped, and at once where it could not be mapped; upstream leaks it there.</summary>
    /// <param name="page">The first page.</param>
    /// <param name="length">The bytes from its beginning on, at least 1.</param>
    /// <param name="protection">The protection.</param>
    /// <param name="flags">The MAP_ flags.</param>
    /// <param name="function">The call that failed.</param>
    /// <param name="error">Its error number, or 0.</param>
    /// <exception cref="ObjectDisposedException">The device was closed.</exception>
    public SafeMapping? TryMap(ulong page, ulong length, MemoryProtection protection, MapFlags flags, out string function, out int error)
    {
        function = "ioctl(IOCTL_GNTDEV_MAP_GRANT_REF)";
        var count = XenPage.Count(length);
        using var lease = new DescriptorLease(_device);
        error = TryMapReferences(page, count, out var index);
        if (error != 0) return null;
        function = "mmap";
        var mapping = Mman.TryMap((nuint)(count * XenPage.Size), (int)protection, (int)flags, lease.Number, (long)index, out error);
        if (mapping is null)
        {
            Unmap(index, (uint)count);
            return null;
        }

        // The device stays open until its grant is back.
        var taken = false;
        _device.DangerousAddRef(ref taken);
        return mapping.AfterUnmap(() =>
        {
            Unmap(index, (uint)count);
            _device.DangerousRelease();
        });
    }

    private int TryMapReferences(ulong page, ulong count, out ulong index)
    {
        index = 0;
        if (count > XenPage.MaxCount) return Errno.ENOMEM;
        var size = sizeof(IoctlGntdevMapGrantRef) + (((int)count - 1) * sizeof(IoctlGntdevGrantRef));
        var buffer = size <= Few ? stackalloc byte[Few] : new byte[size];
        fixed (byte* start = buffer)
        {
            var request = (IoctlGntdevMapGrantRef*)start;
            request->count = (uint)count;
            var references = &request->refs;
            for (ulong i = 0; i < count; i++) references[i] = new IoctlGntdevGrantRef { domid = _domain, @ref = ReferenceOf(page + i) };
            var error = _calls.Ioctl(_device, XenApi.IOCTL_GNTDEV_MAP_GRANT_REF, request);
            index = request->index;
            return error;
        }
    }

    // Where it fails the kernel gives the grant back when the device is closed. Upstream ends the process.
    private void Unmap(ulong index, uint count)
    {
        var request = new IoctlGntdevUnmapGrantRef { index = index, count = count };
        _ = _calls.Ioctl(_device, XenApi.IOCTL_GNTDEV_UNMAP_GRANT_REF, &request);
    }
}
