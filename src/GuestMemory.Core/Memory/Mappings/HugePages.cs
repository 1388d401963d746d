using System.Collections.Concurrent;
using System.Globalization;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core;

/// <summary>A pool of huge pages of this host.</summary>
/// <param name="PageSize">The size of its pages, in bytes.</param>
/// <param name="Total">How many pages it has.</param>
/// <param name="Free">How many of them are not in use.</param>
public sealed record HugePagePool(ulong PageSize, long Total, long Free);

/// <summary>The pools of huge pages (<c>/sys/kernel/mm/hugepages</c>).</summary>
public static class HugePages
{
    // The files of pools that are read again and again, as long as the process lives.
    private static readonly ConcurrentDictionary<string, SafeFileHandle> s_files = new(StringComparer.Ordinal);

    private const string Folder = "/sys/kernel/mm/hugepages";

    /// <summary>
    /// The size in bytes of the huge pages that MAP_HUGETLB gives without a size of its own (Hugepagesize in <c>/proc/meminfo</c>); 0 where
    /// the kernel has none.
    /// </summary>
    public static ulong DefaultPageSize
    {
        get
        {
            const string Name = "Hugepagesize:";
            var line = File.ReadLines("/proc/meminfo").FirstOrDefault(static line => line.StartsWith(Name, StringComparison.Ordinal));
            return line is not null && ulong.TryParse(line.AsSpan(Name.Length).Trim().TrimEnd(" kB"), NumberStyles.None, CultureInfo.InvariantCulture, out var kilobytes) ? kilobytes * 1024 : 0;
        }
    }

    /// <summary>Every pool, the smallest pages first.</summary>
    public static IReadOnlyList<HugePagePool> Pools()
    {
        if (!Directory.Exists(Folder)) return [];
        var pools = new List<HugePagePool>();
        foreach (var pool in Directory.GetDirectories(Folder))
        {
            // hugepages-2048kB
            var name = Path.GetFileName(pool).AsSpan("hugepages-".Length);
            if (ulong.TryParse(name[..^2], NumberStyles.None, CultureInfo.InvariantCulture, out var kilobytes))
                pools.Add(new HugePagePool(kilobytes * 1024, Read(pool, "nr_hugepages"), Read(pool, "free_hugepages")));
        }

        pools.Sort((left, right) => left.PageSize.CompareTo(right.PageSize));
        return pools;
    }

    /// <summary>How many pages of a pool a process without a reservation can get, with those that the kernel makes on demand.</summary>
    internal static long Available(ulong pageSize)
    {
        var pool = FolderOf(pageSize);
        try
        {
            var onDemand = Math.Max(0, ReadKept(pool, "nr_overcommit_hugepages") - ReadKept(pool, "surplus_hugepages"));
            return Math.Max(0, ReadKept(pool, "free_hugepages") - ReadKept(pool, "resv_hugepages")) + onDemand;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // There is no such pool, or no descriptor is left to read its files with: the caller tries again.
            return 0;
        }
    }

    /// <summary>Opens what <see cref="Available"/> reads, for a process that will open no more files.</summary>
    internal static void OpenPools()
    {
        foreach (var pool in Pools()) _ = Available(pool.PageSize);
    }

    /// <summary>The command by which root enlarges a pool; N stands for the number of pages.</summary>
    internal static string EnlargeCommand(ulong pageSize) => $"echo N > {FolderOf(pageSize)}/nr_hugepages";

    private static string FolderOf(ulong pageSize) => Path.Combine(Folder, string.Create(CultureInfo.InvariantCulture, $"hugepages-{pageSize / 1024}kB"));

    // The kernel makes the content anew when it is read from the beginning.
    private static long ReadKept(string pool, string file)
    {
        Span<byte> text = stackalloc byte[32];
        var length = RandomAccess.Read(s_files.GetOrAdd(Path.Combine(pool, file), static path => File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite)), text, 0);
        return long.TryParse(text[..length].TrimEnd((byte)'\n'), NumberStyles.None, CultureInfo.InvariantCulture, out var number) ? number : 0;
    }

    private static long Read(string pool, string file) =>
        long.TryParse(File.ReadAllText(Path.Combine(pool, file)), NumberStyles.Integer, CultureInfo.InvariantCulture, out var number) ? number : 0;
}
