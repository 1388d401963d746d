using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using GuestMemory.Core.Images;

namespace GuestMemory.Core.Paging;

/// <summary>
/// A guest's memory by virtual addresses: what page tables in it map. It owns nothing; the regions stay their owners'. The guest may run
/// meanwhile, and change its tables between two reads of them.
/// </summary>
public sealed class GuestVirtualMemory
{
    private const int MaxLevels = 5;

    /// <param name="memory">The guest's memory, by physical addresses.</param>
    /// <param name="pageTable">The guest physical address of the table of the top level, or the register that holds it: CR3, TTBR0_EL1 or TTBR1_EL1.</param>
    /// <param name="format">How the tables are laid out.</param>
    public GuestVirtualMemory(GuestMemoryMmap memory, ulong pageTable, PageTableFormat format)
    {
        ArgumentNullException.ThrowIfNull(memory);
        ArgumentNullException.ThrowIfNull(format);
        Memory = memory;
        Format = format;
        PageTable = format.Root(pageTable);
    }

    /// <summary>The guest's memory, by physical addresses.</summary>
    public GuestMemoryMmap Memory { get; }

    /// <summary>The guest physical address of the table of the top level.</summary>
    public ulong PageTable { get; }

    /// <summary>How the tables are laid out.</summary>
    public PageTableFormat Format { get; }

    /// <summary>Whether the tables are of the upper half of the addresses alone, as those behind TTBR1 of aarch64.</summary>
    internal bool IsUpperHalf { get; init; }

    /// <summary>
    /// The memory by the one format of an architecture whose walk ends at a page: the registers that tell it are not in the memory. For
    /// aarch64 with pages of 4 KiB.
    /// </summary>
    /// <param name="memory">The guest's memory.</param>
    /// <param name="pageTable">As for the constructor.</param>
    /// <param name="architecture">The architecture.</param>
    /// <param name="virtualAddress">An address that is mapped.</param>
    /// <param name="cancellation">Ends it.</param>
    /// <exception cref="GuestMemoryException">
    /// PageTableAmbiguous: tables of several formats map the address. Where none does, the error of <see cref="Translate"/> with the first.
    /// </exception>
    public static GuestVirtualMemory Detect(GuestMemoryMmap memory, ulong pageTable, GuestArchitecture architecture, ulong virtualAddress, CancellationToken cancellation = default)
    {
        GuestVirtualMemory? found = null;
        GuestMemoryException? error = null;
        foreach (var format in PageTableFormat.All(architecture))
        {
            var candidate = new GuestVirtualMemory(memory, pageTable, format);
            try
            {
                candidate.Translate(virtualAddress, cancellation);
            }
            catch (GuestMemoryException exception) when (IsTranslationError(exception.Error))
            {
                // What an address that is canonical says is worth more.
                if (error is null or { Error: GuestMemoryError.AddressNotCanonical }) error = exception;
                continue;
            }

            if (found is not null)
            {
                throw new GuestMemoryException(GuestMemoryError.PageTableAmbiguous,
                    $"The page table at guest address 0x{candidate.PageTable:x} maps virtual address 0x{virtualAddress:x} both with {found.Format} and with {format}. Say how many levels it has.") { Address = virtualAddress };
            }

            found = candidate;
        }

        return found ?? throw error!;
    }

    /// <summary>Whether an error says that a virtual address is not mapped, or not by tables that make sense.</summary>
    internal static bool IsTranslationError(GuestMemoryError error) => error is GuestMemoryError.AddressNotCanonical or GuestMemoryError.PageNotPresent
        or GuestMemoryError.PageTableNotMapped or GuestMemoryError.PageTableInvalid;

    /// <summary>Looks a virtual address up in the page tables. A table may refer to itself; a walk reads one table a level, and ends.</summary>
    /// <param name="virtualAddress">The address.</param>
    /// <param name="cancellation">Ends it.</param>
    /// <exception cref="GuestMemoryException">
    /// AddressNotCanonical; PageNotPresent: an entry says that nothing is mapped; PageTableNotMapped: a table lies outside the memory;
    /// PageTableInvalid: an entry has bits that are reserved. The message names level, entry and table. And as for a read.
    /// </exception>
    public PageTranslation Translate(ulong virtualAddress, CancellationToken cancellation = default) => new Walk(this, cancellation).Translate(virtualAddress);

    /// <summary>The same, or null where the address is not mapped.</summary>
    public PageTranslation? TryTranslate(ulong virtualAddress, CancellationToken cancellation = default)
    {
        try
        {
            return Translate(virtualAddress, cancellation);
        }
        catch (GuestMemoryException exception) when (IsTranslationError(exception.Error))
        {
            return null;
        }
    }

    /// <summary>Reads exactly as many bytes as the buffer has; it may cross pages. After a cancellation the buffer must not be used.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="Translate"/>; InvalidGuestAddress: a page lies outside the memory; GuestAddressOverflow; and as for a read.</exception>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    public void ReadExact(ulong virtualAddress, Memory<byte> destination, CancellationToken cancellation = default)
    {
        foreach (var (at, size, done) in Parts(virtualAddress, (ulong)destination.Length, cancellation))
            Memory.ReadExact(at, destination.Slice((int)done, (int)size), cancellation);
    }

    /// <summary>Reads an integer or a structure; it may cross pages.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="ReadExact"/>.</exception>
    public T ReadObject<T>(ulong virtualAddress, CancellationToken cancellation = default)
        where T : unmanaged
    {
        var bytes = new byte[Unsafe.SizeOf<T>()];
        ReadExact(virtualAddress, bytes, cancellation);
        return MemoryMarshal.Read<T>(bytes);
    }

    /// <summary>Checks that every byte of a range is mapped, to pages of the memory.</summary>
    /// <exception cref="GuestMemoryException">As <see cref="ReadExact"/>.</exception>
    public void RequireRange(ulong virtualAddress, ulong size, CancellationToken cancellation = default)
    {
        foreach (var part in Parts(virtualAddress, size, cancellation)) _ = part;
    }

    /// <summary>Writes a range to a file, as <see cref="RawImage.WriteRange"/> does it with guest addresses.</summary>
    /// <param name="virtualAddress">The first virtual address.</param>
    /// <param name="size">The length in bytes.</param>
    /// <param name="path">The file to make.</param>
    /// <param name="overwrite">Whether a file that is there may be replaced.</param>
    /// <param name="progress">Told the bytes done.</param>
    /// <param name="cancellation">Ends it; what was written is removed.</param>
    /// <exception cref="GuestMemoryException">FileExists; NotAFile; and as <see cref="ReadExact"/>.</exception>
    public void WriteRange(ulong virtualAddress, ulong size, string path, bool overwrite, Action<ulong>? progress = null, CancellationToken cancellation = default)
    {
        RequireRange(virtualAddress, size, cancellation);
        RawImage.WriteBeside(path, size, overwrite, file =>
        {
            var output = new RawImage.PageWriter(file);
            foreach (var (at, part, done) in Parts(virtualAddress, size, cancellation))
            {
                RawImage.Copy(Memory, at.Value, part, (from, buffer) => output.WriteNonZero(buffer, done + from - at.Value), cancellation);
                progress?.Invoke(done + part);
            }

            return output.Written;
        }, cancellation);
    }

    /// <summary>The root and the format, for debuggers and messages.</summary>
    public override string ToString() => $"page table 0x{PageTable:x} ({Format})";

    /// <summary>The pages of a range, as parts of the memory.</summary>
    internal IEnumerable<(GuestAddress Address, ulong Size, ulong Done)> Parts(ulong virtualAddress, ulong size, CancellationToken cancellation)
    {
        if (size > 0 && size - 1 > ulong.MaxValue - virtualAddress)
            throw new GuestMemoryException(GuestMemoryError.GuestAddressOverflow, $"The range of 0x{size:x} bytes at virtual address 0x{virtualAddress:x} passes the last address, 2^64 - 1.") { Address = virtualAddress };
        var walk = new Walk(this, cancellation);
        for (ulong done = 0; done < size;)
        {
            cancellation.ThrowIfCancellationRequested();
            var page = walk.Translate(virtualAddress + done);
            var part = Math.Min(size - done, page.Rest);
            var address = new GuestAddress(page.Address);
            if (!Memory.CheckRange(address, part))
            {
                throw new GuestMemoryException(GuestMemoryError.InvalidGuestAddress,
                    $"Virtual address 0x{page.VirtualAddress:x} is mapped to guest address {address}, where the memory ends or has a hole: a device, or memory that is not given. The memory holds {Memory}.") { Address = page.Address };
            }

            yield return (address, part, done);
            done += part;
        }
    }

    /// <summary>Translates one address after the other, and keeps the way to the last one.</summary>
    private sealed class Walk(GuestVirtualMemory space, CancellationToken cancellation)
    {
        private readonly byte[] _entry = new byte[8];
        private readonly ulong[] _tables = new ulong[MaxLevels];
        private ulong _last;
        private int _known = MaxLevels;

        public PageTranslation Translate(ulong virtualAddress)
        {
            var format = space.Format;
            if (!format.IsCanonical(virtualAddress))
            {
                throw new GuestMemoryException(GuestMemoryError.AddressNotCanonical,
                    $"Virtual address 0x{virtualAddress:x} is not canonical: with {format} an address has {format.VirtualAddressBits} bits, and those above them are equal.") { Address = virtualAddress };
            }

            if (space.IsUpperHalf && virtualAddress < 1UL << 63)
            {
                throw new GuestMemoryException(GuestMemoryError.PageNotPresent,
                    $"Virtual address 0x{virtualAddress:x} is not mapped: it is one of a process, and the kernel's own page table (TTBR1) maps the upper half alone.") { Address = virtualAddress };
            }

            // The tables that map both this address and the last one were read for that.
            var top = format.Levels - 1;
            var level = top;
            _tables[top] = space.PageTable;
            while (level > 0 && _known < level && virtualAddress >> format.Shift(level) == _last >> format.Shift(level)) level--;
            _last = virtualAddress;
            for (; ; level--)
            {
                _known = level;
                var index = format.Index(virtualAddress, level);
                var at = _tables[level] + (index * 8);
                if (!space.Memory.CheckRange(new GuestAddress(at), 8))
                    throw Error(GuestMemoryError.PageTableNotMapped, "lies outside the memory: the address of the page table is wrong, or the memory is not all of the guest's");
                space.Memory.ReadExact(new GuestAddress(at), _entry.AsMemory(), cancellation);
                var value = BinaryPrimitives.ReadUInt64LittleEndian(_entry);
                if (format.Decode(value, level) is not { } entry) throw Error(GuestMemoryError.PageNotPresent, $"is not present (0x{value:x})");
                if (!entry.IsValid) throw Error(GuestMemoryError.PageTableInvalid, $"has bits that are reserved (0x{value:x}): this is no page table, or one of another format than {format}");
                if (entry.IsPage)
                {
                    var size = 1UL << format.Shift(level);
                    return new PageTranslation(virtualAddress, entry.Address | (virtualAddress & (size - 1)), size);
                }

                _tables[level - 1] = entry.Address;

                GuestMemoryException Error(GuestMemoryError error, string what) => new(error,
                    $"Virtual address 0x{virtualAddress:x} is not mapped: entry {index} of the {format.Name(level)} at guest address 0x{_tables[level]:x} {what}.") { Address = virtualAddress };
            }
        }
    }
}
