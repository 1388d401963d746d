using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>Enlarges a pool of huge pages for a test and puts it back.</summary>
internal sealed class HugePagePoolOf : IDisposable
{
    private readonly string _file;
    private readonly string _before;

    public HugePagePoolOf(long pageSize, int pages)
    {
        _file = $"/sys/kernel/mm/hugepages/hugepages-{pageSize / 1024}kB/nr_hugepages";
        _before = File.ReadAllText(_file);
        File.WriteAllText(_file, (int.Parse(_before, CultureInfo.InvariantCulture) + pages).ToString(CultureInfo.InvariantCulture));
        Free = HugePages.Pools().First(pool => pool.PageSize == (ulong)pageSize).Free;
    }

    public long Free { get; }

    public void Dispose() => File.WriteAllText(_file, _before);
}
