using System.Globalization;

namespace GuestMemory.Core.Processes;

/// <summary>A mapping in the address space of a process: a line of <c>/proc/PID/maps</c>.</summary>
/// <param name="Address">The first address.</param>
/// <param name="Size">The length in bytes.</param>
/// <param name="Protection">What the process may do there, and whether it is shared or private: "rw-p".</param>
/// <param name="Inode">The number of the mapped file; 0 where the memory is anonymous.</param>
/// <param name="Path">The mapped file, or what the kernel calls the mapping: "/memfd:ram (deleted)", "[heap]"; empty for plain anonymous memory.</param>
public sealed record ProcessMapping(ulong Address, ulong Size, string Protection, ulong Inode, string Path)
{
    private const string PageSizeField = "KernelPageSize:";

    /// <summary>Where in the mapped file the mapping begins, in bytes.</summary>
    public ulong Offset { get; init; }

    /// <summary>The device of the mapped file, "8:2"; "0:0" where the memory is anonymous.</summary>
    public string Device { get; init; } = "";

    /// <summary>The address after the last one.</summary>
    public ulong End => unchecked(Address + Size);

    /// <summary>Whether the process may write there.</summary>
    public bool IsWritable => Protection.Contains('w', StringComparison.Ordinal);

    /// <summary>Whether others see what the process writes there (MAP_SHARED).</summary>
    public bool IsShared => Protection.EndsWith('s');

    /// <summary>The mappings of a process, in ascending order.</summary>
    /// <param name="processId">The process.</param>
    /// <exception cref="GuestMemoryException">ProcessNotFound, ProcessDenied.</exception>
    public static IReadOnlyList<ProcessMapping> GetAll(int processId) =>
        ProcessFile.Read(processId, "maps", static lines => lines.Select(Parse).OfType<ProcessMapping>().ToArray());

    /// <summary>The first address after <paramref name="address"/> that has no memory.</summary>
    /// <param name="mappings">Mappings in ascending order; none ends before the address.</param>
    /// <param name="address">The address.</param>
    internal static ulong FindGap(IEnumerable<ProcessMapping> mappings, ulong address)
    {
        foreach (var mapping in mappings)
        {
            if (mapping.Address > address) break;
            address = mapping.End;
        }

        return address;
    }

    /// <summary>The page sizes of the mappings that share addresses with a range, in bytes.</summary>
    /// <param name="processId">The process.</param>
    /// <param name="start">The first address.</param>
    /// <param name="end">The address after the last one.</param>
    /// <param name="hasDevice">Whether one of them is memory of a device (VM_PFNMAP).</param>
    internal static IReadOnlySet<ulong> PageSizesOf(int processId, ulong start, ulong end, out bool hasDevice)
    {
        var isDevice = false;
        var sizes = ProcessFile.Read(processId, "smaps", lines =>
        {
            var found = new HashSet<ulong>();
            ProcessMapping? current = null;
            foreach (var line in lines)
            {
                current = Parse(line) ?? current;
                // The kernel goes through the pages of each mapping that is read on.
                if (current is not null && current.Address >= end) break;
                if (current is null || current.End <= start) continue;
                if (line.StartsWith("VmFlags:", StringComparison.Ordinal)) isDevice |= line.Contains(" pf", StringComparison.Ordinal);
                if (!line.StartsWith(PageSizeField, StringComparison.Ordinal)) continue;
                if (ulong.TryParse(line.AsSpan(PageSizeField.Length).Trim().TrimEnd(" kB"), NumberStyles.None, CultureInfo.InvariantCulture, out var kilobytes)) found.Add(kilobytes * 1024);
            }

            return found;
        });
        hasDevice = isDevice;
        return sizes;
    }

    /// <summary>Whether a userfaultfd of the process provides pages of a range: they come only by an access in the process itself.</summary>
    /// <param name="processId">The process.</param>
    /// <param name="start">The first address.</param>
    /// <param name="end">The address after the last one.</param>
    internal static bool IsProvided(int processId, ulong start, ulong end) => ProcessFile.Read(processId, "smaps", lines =>
    {
        ProcessMapping? current = null;
        foreach (var line in lines)
        {
            current = Parse(line) ?? current;
            if (current is not null && current.Address >= end) break;
            if (current is null || current.End <= start || !line.StartsWith("VmFlags:", StringComparison.Ordinal)) continue;
            // VM_UFFD_MISSING and VM_UFFD_MINOR.
            if (line.Split(' ').Any(static flag => flag is "um" or "ui")) return true;
        }

        return false;
    });

    /// <summary>A line as the kernel writes it, "START-END PERMS OFFSET DEVICE INODE PATH"; null where it is none.</summary>
    internal static ProcessMapping? Parse(string line)
    {
        var fields = line.Split(' ', 6, StringSplitOptions.RemoveEmptyEntries);
        if (fields.Length < 5 || fields[1].Length != 4) return null;
        var dash = fields[0].IndexOf('-', StringComparison.Ordinal);
        if (dash < 0 || !TryHex(fields[0].AsSpan(0, dash), out var start) || !TryHex(fields[0].AsSpan(dash + 1), out var end) || end <= start) return null;
        return ulong.TryParse(fields[4], NumberStyles.None, CultureInfo.InvariantCulture, out var inode) && TryHex(fields[2], out var offset)
            ? new ProcessMapping(start, end - start, fields[1], inode, fields.Length > 5 ? fields[5].Trim() : "") { Offset = offset, Device = fields[3] }
            : null;
    }

    private static bool TryHex(ReadOnlySpan<char> text, out ulong value) => ulong.TryParse(text, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out value);
}
