using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>
/// The memory of one guest: regions that do not overlap, as one guest physical address space (vm-memory's GuestMemoryMmap).
/// Reads and writes may cross from one region into the next where they touch.
/// </summary>
public sealed partial class GuestMemoryMmap : IGuestMemorySource
{
    private readonly GuestRegionMmap[] _regions;

    // The regions' addresses, close together: a search touches nothing else.
    private readonly ulong[] _starts;

    private GuestMemoryMmap(GuestRegionMmap[] regions)
    {
        _regions = regions;
        _starts = Array.ConvertAll(regions, static region => region.GuestAddress);
    }

    /// <summary>The regions, in ascending order of their guest addresses.</summary>
    public IReadOnlyList<GuestRegionMmap> Regions => _regions;

    /// <inheritdoc/>
    public IReadOnlyList<GuestRegionMmap> GetRegions() => _regions;

    /// <summary>The sum of the regions' sizes, in bytes.</summary>
    public ulong Size => _regions.Aggregate(0UL, (sum, region) => sum + region.Size);

    /// <summary>The last guest address of the last region; 0 without regions.</summary>
    public ulong LastAddress => _regions.Length == 0 ? 0 : _regions[^1].LastAddress;

    /// <summary>Whether an access may have to wait for somebody: a page-fault handler lies behind a region.</summary>
    internal bool MayWait => Array.Exists(_regions, static region => region.GetMapping().MayWait);

    /// <summary>An address space without regions.</summary>
    public static GuestMemoryMmap Empty { get; } = new([]);

    /// <summary>
    /// Makes an address space of regions in ascending order. It never changes: inserting and removing give another one, which
    /// shares the regions.
    /// </summary>
    /// <exception cref="GuestMemoryException">NoMemoryRegion, UnsortedMemoryRegions, MemoryRegionOverlap (the first pair that is wrong decides), RegionDisposed.</exception>
    public static GuestMemoryMmap FromRegions(IEnumerable<GuestRegionMmap> regions)
    {
        GuestRegionMmap[] all = [.. regions];
        if (all.Length == 0) throw new GuestMemoryException(GuestMemoryError.NoMemoryRegion, "No memory region was given.");
        return FromArray(all);
    }

    /// <summary>The same address space with one more region.</summary>
    /// <exception cref="GuestMemoryException">MemoryRegionOverlap, RegionDisposed; this one stays as it is.</exception>
    public GuestMemoryMmap InsertRegion(GuestRegionMmap region) => FromArray([.. _regions.Append(region).OrderBy(each => each.GuestAddress)]);

    /// <summary>The same address space without the region that has exactly this address and size, and that region.</summary>
    /// <exception cref="GuestMemoryException">NoMemoryRegion: there is none.</exception>
    public (GuestMemoryMmap Memory, GuestRegionMmap Removed) RemoveRegion(GuestAddress address, ulong size)
    {
        var region = Array.Find(_regions, each => each.GuestAddress == address.Value && each.Size == size)
            ?? throw new GuestMemoryException(GuestMemoryError.NoMemoryRegion, $"There is no region of 0x{size:x} bytes at {address}.");
        return (new GuestMemoryMmap([.. _regions.Where(each => each != region)]), region);
    }

    private static GuestMemoryMmap FromArray(GuestRegionMmap[] regions)
    {
        for (var i = 0; i < regions.Length; i++)
        {
            if (regions[i].IsDisposed) throw new GuestMemoryException(GuestMemoryError.RegionDisposed, $"Region {regions[i]} was removed; its memory is no longer mapped.");
            if (i == 0) continue;
            if (regions[i - 1].GuestAddress > regions[i].GuestAddress)
                throw new GuestMemoryException(GuestMemoryError.UnsortedMemoryRegions, $"The region {regions[i - 1]} stands before {regions[i]}, which begins below it. Give the regions in ascending order.");
            if (regions[i - 1].LastAddress >= regions[i].GuestAddress)
            {
                throw new GuestMemoryException(GuestMemoryError.MemoryRegionOverlap,
                    $"The regions {regions[i - 1]} and {regions[i]} share guest addresses and cannot form one address space.");
            }
        }

        return new GuestMemoryMmap(regions);
    }

    /// <summary>The region that holds an address, or null.</summary>
    public GuestRegionMmap? FindRegion(GuestAddress address)
    {
        // Without a branch that depends on the address: half of those would be guessed wrong.
        ref var starts = ref MemoryMarshal.GetArrayDataReference(_starts);
        nuint first = 0;
        for (var count = (nuint)_starts.Length; count > 1;)
        {
            var half = count >> 1;
            first = Unsafe.Add(ref starts, first + half) <= address.Value ? first + half : first;
            count -= half;
        }

        var regions = _regions;
        if (first >= (nuint)regions.Length) return null;
        var region = regions[first];
        return unchecked(address.Value - region.GuestAddress) < region.Size ? region : null;
    }

    /// <summary>The region that holds an address and where in it the address lies, or null.</summary>
    public (GuestRegionMmap Region, MemoryRegionAddress Address)? ToRegionAddress(GuestAddress address) =>
        FindRegion(address) is { } region ? (region, new MemoryRegionAddress(address.Value - region.GuestAddress)) : null;

    /// <summary>Whether a region holds an address.</summary>
    public bool AddressInRange(GuestAddress address) => FindRegion(address) is not null;

    /// <summary>The address itself where a region holds it, or null.</summary>
    public GuestAddress? CheckAddress(GuestAddress address) => AddressInRange(address) ? address : null;

    /// <summary>The address so many bytes above another, where a region holds it, or null. What lies between does not matter.</summary>
    public GuestAddress? CheckedOffset(GuestAddress start, ulong offset) => start.CheckedAdd(offset) is { } address ? CheckAddress(address) : null;

    /// <summary>
    /// Whether every byte of a range is mapped, with a protection that allows an access (vm-memory's check_range; upstream's plain
    /// memory leaves the access out of account). A range of no bytes always is.
    /// </summary>
    public bool CheckRange(GuestAddress address, ulong size, MemoryProtection access = MemoryProtection.None)
    {
        for (ulong done = 0; done < size;)
        {
            if (address.CheckedAdd(done) is not { } at || FindRegion(at) is not { } region || !region.Protection.Allows(access)) return false;
            done += Math.Min(size - done, region.Size - (at.Value - region.GuestAddress));
        }

        return true;
    }

    /// <summary>Where a guest address is mapped in this process. For handing on; access goes through this class.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress.</exception>
    /// <remarks>The addresses stay this memory's, if without its content, as long as the region is referred to.</remarks>
    public ulong GetHostAddress(GuestAddress address)
    {
        var region = FindRegion(address) ?? throw Unmapped(address);
        return region.HostAddress + (address.Value - region.GuestAddress);
    }

    /// <summary>Reads bytes; returns how many came before the first unmapped address.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress: not even the first byte is mapped. PageNotAccessible. GuestAddressOverflow.</exception>
    public int Read(GuestAddress address, Span<byte> destination)
    {
        var done = 0;
        while (done < destination.Length && Locate(address, done, out var region, out var offset))
            done += Part(region, offset, region.GetMapping().TryRead(offset, destination[done..], out var error), error, MemoryProtection.Read);
        return done;
    }

    /// <summary>Writes bytes and marks them dirty; returns how many went before the first unmapped address.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress: not even the first byte is mapped. PageNotAccessible. GuestAddressOverflow.</exception>
    public int Write(GuestAddress address, ReadOnlySpan<byte> source)
    {
        var done = 0;
        while (done < source.Length && Locate(address, done, out var region, out var offset))
            done += Part(region, offset, region.GetMapping().TryWrite(offset, source[done..], out var error), error, MemoryProtection.Write);
        return done;
    }

    /// <summary>Reads exactly as many bytes as the buffer has.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="Read(GuestAddress, Span{byte})"/>, and PartialBuffer where the range runs into a hole.</exception>
    public void ReadExact(GuestAddress address, Span<byte> destination) => ThrowIfPartial(address, (ulong)destination.Length, (ulong)Read(address, destination), "read");

    /// <summary>
    /// Reads exactly as many bytes as the buffer has; where a page-fault handler may make it wait, on a thread of its own that is abandoned
    /// when the token says so. The buffer must not be used again after that.
    /// </summary>
    /// <exception cref="OperationCanceledException">The token was cancelled; the read may still be waiting for its page.</exception>
    /// <exception cref="GuestMemoryException">As without a token, and HandlerGone: a page is missing and its handler has hung up.</exception>
    public void ReadExact(GuestAddress address, Memory<byte> destination, CancellationToken cancellation)
    {
        ThrowIfPartial(address, (ulong)destination.Length, (ulong)Stoppable(address, destination.Length, (at, from, length) => Read(at, destination.Span.Slice(from, length)), cancellation), "read");
    }

    /// <summary>Writes all the bytes.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="Write(GuestAddress, ReadOnlySpan{byte})"/>, and PartialBuffer where the range runs into a hole.</exception>
    public void WriteExact(GuestAddress address, ReadOnlySpan<byte> source) => ThrowIfPartial(address, (ulong)source.Length, (ulong)Write(address, source), "written");

    /// <summary>Writes all the bytes; abandoned like <see cref="ReadExact(GuestAddress, Memory{byte}, CancellationToken)"/>.</summary>
    /// <exception cref="OperationCanceledException">The token was cancelled; the write may still be waiting for its page.</exception>
    public void WriteExact(GuestAddress address, ReadOnlyMemory<byte> source, CancellationToken cancellation)
    {
        ThrowIfPartial(address, (ulong)source.Length, (ulong)Stoppable(address, source.Length, (at, from, length) => Write(at, source.Span.Slice(from, length)), cancellation), "written");
    }

    /// <summary>Checks that every byte of a range is mapped with a protection that allows an access, before anything is changed.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress with the first address that is not; PageNotAccessible; GuestAddressOverflow.</exception>
    public void RequireRange(GuestAddress address, ulong size, MemoryProtection access = MemoryProtection.None)
    {
        for (ulong done = 0; done < size;)
        {
            var at = address.CheckedAdd(done) ?? throw Overflow(address, size);
            var region = FindRegion(at) ?? throw Unmapped(at);
            if (!region.Protection.Allows(access)) throw Inaccessible(region, at, access, null);
            done += Math.Min(size - done, region.Size - (at.Value - region.GuestAddress));
        }
    }

    /// <summary>
    /// Gives the pages of a range back to the host, as a balloon does (Firecracker's discard_range); it may span regions. Where a
    /// page-fault handler serves the memory this waits until the handler has taken note, on a thread of its own that is abandoned
    /// when the token says so.
    /// </summary>
    /// <param name="address">The first guest address; like the size a multiple of the regions' page size.</param>
    /// <param name="size">The bytes.</param>
    /// <param name="cancellation">Ends the wait.</param>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress, GuestAddressOverflow: nothing was given back; HandlerGone.</exception>
    public void Discard(GuestAddress address, ulong size, CancellationToken cancellation = default)
    {
        RequireRange(address, size);
        BlockingAccess.Run(progress =>
        {
            for (ulong done = 0; done < size && !cancellation.IsCancellationRequested;)
            {
                var region = FindRegion(new GuestAddress(address.Value + done))!;
                var offset = address.Value + done - region.GuestAddress;
                var part = Math.Min(size - done, region.Size - offset);
                region.GetMapping().Discard(offset, part);
                done += part;
                Volatile.Write(ref progress.Value, progress.Value + 1);
            }

            return 0;
        }, Orphaned, cancellation);
    }

    /// <summary>Runs an access piece by piece; where it may have to wait on a thread of its own, which the token abandons.</summary>
    private int Stoppable(GuestAddress address, int length, Func<GuestAddress, int, int, int> access, CancellationToken cancellation)
    {
        if (MayWait) return BlockingAccess.Run(progress => Pieces(address, length, access, progress, cancellation), Orphaned, cancellation);
        var done = Pieces(address, length, access, null, cancellation);
        if (done < length) cancellation.ThrowIfCancellationRequested();
        return done;
    }

    private int Pieces(GuestAddress address, int length, Func<GuestAddress, int, int, int> access, StrongBox<long>? progress, CancellationToken cancellation)
    {
        const int Piece = 1 << 20;
        var done = 0;
        while (done < length && !cancellation.IsCancellationRequested)
        {
            var at = address.CheckedAdd((ulong)done) ?? throw Overflow(address, (ulong)length);
            if (done > 0 && FindRegion(at) is null) break;
            done += access(at, done, Math.Min(Piece, length - done));
            if (progress is not null) Volatile.Write(ref progress.Value, done);
        }

        return done;
    }

    /// <summary>Why a page will never come, or null.</summary>
    private GuestMemoryException? Orphaned() => Array.Find(_regions, static region => region.GetMapping().GoneHolder is not null) is { } orphan
        ? new GuestMemoryException(GuestMemoryError.HandlerGone,
            $"A page of region '{orphan.Name}' is missing, and {orphan.GetMapping().GoneHolder} has closed the connection: it ended, or it refused the hand-over because the memory does not fit its image (its Error says which). Remove the region by force, and connect fresh memory.")
        : null;

    private bool Locate(GuestAddress address, int done, out GuestRegionMmap region, out ulong offset)
    {
        var at = address.CheckedAdd((ulong)done) ?? throw Overflow(address, (ulong)done);
        region = FindRegion(at)!;
        offset = region is null ? 0 : at.Value - region.GuestAddress;
        return region is not null || (done > 0 ? false : throw Unmapped(address));
    }

    private static int Part(GuestRegionMmap region, ulong offset, int count, int error, MemoryProtection access)
    {
        if (error == 0) return count;
        if (region.IsDisposed) throw MmapRegion.Disposed();
        var at = offset + (ulong)count;
        throw Inaccessible(region, new GuestAddress(region.GuestAddress + at), access,
            new SyscallException(access == MemoryProtection.Read ? "process_vm_readv" : "process_vm_writev", error, $"Access to host address 0x{region.HostAddress + at:x}"));
    }

    private static GuestMemoryException Inaccessible(GuestRegionMmap region, GuestAddress at, MemoryProtection access, Exception? inner)
    {
        return new GuestMemoryException(GuestMemoryError.PageNotAccessible,
            $"The page at guest address {at} in region '{region.Name}' cannot be {(access == MemoryProtection.Read ? "read" : "written")}: {region.GetMapping().WhyNot(access)}.", inner) { Address = at.Value };
    }

    private static void ThrowIfPartial(GuestAddress address, ulong expected, ulong completed, string verb)
    {
        if (completed < expected)
        {
            throw new PartialBufferException(expected, completed,
                $"Only {completed} of {expected} bytes at {address} could be {verb}: guest address {new GuestAddress(address.Value + completed)} is not mapped.");
        }
    }

    private GuestMemoryException Unmapped(GuestAddress address) =>
        new(GuestMemoryError.InvalidGuestAddress, $"Guest address {address} is not mapped. The memory holds {string.Join(", ", _regions.Take(8).Select(region => region.ToString()))}{(_regions.Length > 8 ? ", ..." : "")}.") { Address = address.Value };

    private static GuestMemoryException Overflow(GuestAddress address, ulong size) =>
        new(GuestMemoryError.GuestAddressOverflow, $"The range of 0x{size:x} bytes at {address} passes the last address, 2^64 - 1.") { Address = address.Value };
}
