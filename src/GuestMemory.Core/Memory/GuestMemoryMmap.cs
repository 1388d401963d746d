using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core;

/// <summary>
/// The memory of one guest: regions of any kind that do not overlap, as one guest physical address space (vm-memory's
/// GuestMemoryMmap). Reads and writes may cross from one region into the next where they touch. The regions stay their owners': an
/// address space never releases memory.
/// </summary>
public sealed partial class GuestMemoryMmap : IGuestMemorySource
{
    private readonly GuestMemoryRegion[] _regions;

    // The regions' addresses, close together: a search touches nothing else.
    private readonly ulong[] _starts;

    private GuestMemoryMmap(GuestMemoryRegion[] regions)
    {
        _regions = regions;
        _starts = Array.ConvertAll(regions, static region => region.GuestAddress);
    }

    /// <summary>The regions, in ascending order of their guest addresses.</summary>
    public IReadOnlyList<GuestMemoryRegion> Regions => _regions;

    /// <inheritdoc/>
    public IReadOnlyList<GuestMemoryRegion> GetRegions() => _regions;

    /// <summary>The sum of the regions' sizes, in bytes.</summary>
    public ulong Size => _regions.Aggregate(0UL, (sum, region) => sum + region.Size);

    /// <summary>The last guest address of the last region; 0 without regions.</summary>
    public ulong LastAddress => _regions.Length == 0 ? 0 : _regions[^1].LastAddress;

    /// <summary>The process whose memory all regions are, as that of a VMM that was attached; null for any other memory.</summary>
    public int? ProcessId => Array.ConvertAll(_regions, static region => region.Process).Distinct().ToArray() is [{ } process] ? process.ProcessId : null;

    /// <summary>An address space without regions.</summary>
    public static GuestMemoryMmap Empty { get; } = new([]);

    /// <summary>
    /// Makes an address space of regions in ascending order. It never changes: inserting and removing give another one, which
    /// shares the regions.
    /// </summary>
    /// <exception cref="GuestMemoryException">NoMemoryRegion, UnsortedMemoryRegions, MemoryRegionOverlap (the first pair that is wrong decides), RegionDisposed.</exception>
    public static GuestMemoryMmap FromRegions(IEnumerable<GuestMemoryRegion> regions)
    {
        GuestMemoryRegion[] all = [.. regions];
        if (all.Length == 0) throw new GuestMemoryException(GuestMemoryError.NoMemoryRegion, "No memory region was given.");
        return FromArray(all);
    }

    /// <summary>
    /// Maps anonymous memory at guest addresses (vm-memory's from_ranges). The caller disposes of the regions; where one cannot be
    /// made, none stays.
    /// </summary>
    /// <param name="ranges">Guest addresses and sizes in bytes, in ascending order.</param>
    /// <exception cref="GuestMemoryException">As <see cref="FromRegions"/>, and <see cref="GuestRegionMmap.FromRange"/>.</exception>
    public static GuestMemoryMmap FromRanges(IEnumerable<(GuestAddress Address, ulong Size)> ranges) =>
        FromRanges(ranges.Select(static range => (range.Address, range.Size, default(SafeFileHandle), 0UL)));

    /// <summary>The same with a part of a file in the place of anonymous memory, where one is given (vm-memory's from_ranges_with_files).</summary>
    /// <param name="ranges">Guest addresses, sizes, files (which stay the caller's) or null, and where in the file each starts, in bytes.</param>
    /// <exception cref="GuestMemoryException">As <see cref="FromRegions"/>, and <see cref="GuestRegionMmap.FromRange"/>.</exception>
    public static GuestMemoryMmap FromRanges(IEnumerable<(GuestAddress Address, ulong Size, SafeFileHandle? File, ulong FileOffset)> ranges)
    {
        ArgumentNullException.ThrowIfNull(ranges);
        var made = new List<GuestMemoryRegion>();
        try
        {
            foreach (var (address, size, file, offset) in ranges) made.Add(GuestRegionMmap.FromRange(address, size, file, offset));
            return FromRegions(made);
        }
        catch
        {
            foreach (var region in made) region.Dispose();
            throw;
        }
    }

    /// <summary>The same address space with one more region.</summary>
    /// <exception cref="GuestMemoryException">MemoryRegionOverlap, RegionDisposed; this one stays as it is.</exception>
    public GuestMemoryMmap InsertRegion(GuestMemoryRegion region) => FromArray([.. _regions.Append(region).OrderBy(each => each.GuestAddress)]);

    /// <summary>The same address space without the region that has exactly this address and size, and that region.</summary>
    /// <exception cref="GuestMemoryException">NoMemoryRegion: there is none.</exception>
    public (GuestMemoryMmap Memory, GuestMemoryRegion Removed) RemoveRegion(GuestAddress address, ulong size)
    {
        var region = Array.Find(_regions, each => each.GuestAddress == address.Value && each.Size == size)
            ?? throw new GuestMemoryException(GuestMemoryError.NoMemoryRegion, $"There is no region of 0x{size:x} bytes at {address}.");
        return (new GuestMemoryMmap([.. _regions.Where(each => each != region)]), region);
    }

    private static GuestMemoryMmap FromArray(GuestMemoryRegion[] regions)
    {
        for (var i = 0; i < regions.Length; i++)
        {
            regions[i].ThrowIfDisposed();
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

    /// <summary>
    /// Has memory of other processes, which were attached to be paused, stay as it is until disposal: for reads that belong together. Holds may be nested.
    /// Null where nothing is to be stopped.
    /// </summary>
    /// <exception cref="GuestMemoryException">ProcessEnded; ProcessDenied, ProcessTraced, WaitTimeout: a process cannot be stopped, and none is.</exception>
    public IDisposable? Hold() => MemoryHold.Of(Array.ConvertAll(_regions, static region => region.Process).Distinct().OfType<IMemoryProcess>());

    /// <summary>The region that holds an address, or null.</summary>
    public GuestMemoryRegion? FindRegion(GuestAddress address)
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
    public (GuestMemoryRegion Region, MemoryRegionAddress Address)? ToRegionAddress(GuestAddress address) =>
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

    /// <summary>Checks that every byte of a range is mapped with a protection that allows an access, before anything is changed.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress with the first address that is not; PageNotAccessible; GuestAddressOverflow.</exception>
    public void RequireRange(GuestAddress address, ulong size, MemoryProtection access = MemoryProtection.None)
    {
        for (ulong done = 0; done < size;)
        {
            var at = address.CheckedAdd(done) ?? throw Overflow(address, size);
            var region = FindRegion(at) ?? throw Unmapped(at);
            if (!region.Protection.Allows(access)) throw Inaccessible(region, at, access, 0, null);
            done += Math.Min(size - done, region.Size - (at.Value - region.GuestAddress));
        }
    }

    /// <summary>Where a guest address is mapped in this process. For handing on; access goes through this class.</summary>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress; HostAddressNotAvailable: the region's memory has no address in this process.</exception>
    /// <remarks>The addresses stay this memory's, if without its content, as long as the region is referred to.</remarks>
    public ulong GetHostAddress(GuestAddress address)
    {
        var region = FindRegion(address) ?? throw Unmapped(address);
        return region.Memory.GetHostAddress(address.Value - region.GuestAddress);
    }

    /// <summary>The regions, for debuggers and messages.</summary>
    public override string ToString() => _regions.Length == 0 ? "no memory" : Text();

    private static GuestMemoryException Inaccessible(GuestMemoryRegion region, GuestAddress at, MemoryProtection access, int error, SyscallException? cause) =>
        region.Memory.NotAccessibleAt($"guest address {at} in region '{region.Name}'", at.Value, access, error, cause);

    private static void ThrowIfPartial(GuestAddress address, ulong expected, ulong completed, string verb)
    {
        if (completed < expected) throw Partial(address, expected, completed, verb);
    }

    private static PartialBufferException Partial(GuestAddress address, ulong expected, ulong completed, string verb) => new(expected, completed,
        $"Only {completed} of {expected} bytes at {address} could be {verb}: guest address {new GuestAddress(address.Value + completed)} is not mapped.");

    private GuestMemoryException Unmapped(GuestAddress address) =>
        new(GuestMemoryError.InvalidGuestAddress, $"Guest address {address} is not mapped. The memory holds {Text()}.") { Address = address.Value };

    private string Text() => $"{string.Join(", ", _regions.Take(8).Select(region => region.ToString()))}{(_regions.Length > 8 ? ", ..." : "")}";

    private static GuestMemoryException Overflow(GuestAddress address, ulong size) =>
        new(GuestMemoryError.GuestAddressOverflow, $"The range of 0x{size:x} bytes at {address} passes the last address, 2^64 - 1.") { Address = address.Value };
}
