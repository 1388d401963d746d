using System.Globalization;
using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>Adds huge pages to a pool for a test, and takes as many away afterwards: suites that run at once leave none behind.</summary>
internal sealed class HugePagePoolOf : IDisposable
{
    private readonly string _file;
    private readonly int _pages;

    public HugePagePoolOf(long pageSize, int pages)
    {
        _file = $"/sys/kernel/mm/hugepages/hugepages-{pageSize / 1024}kB/nr_hugepages";
        _pages = pages;
        Add(pages);
        Free = HugePages.Pools().First(pool => pool.PageSize == (ulong)pageSize).Free;
    }

    public long Free { get; }

    public void Dispose() => Add(-_pages);

    private void Add(int pages) => Host.Until(() =>
    {
        try
        {
            // Locked between reading and writing; TestHelpers.psm1 does the same.
            using var file = File.OpenHandle(_file, FileMode.Open, FileAccess.ReadWrite, FileShare.None);
            var text = new byte[32];
            var before = int.Parse(Encoding.ASCII.GetString(text, 0, RandomAccess.Read(file, text, 0)), CultureInfo.InvariantCulture);
            RandomAccess.Write(file, Encoding.ASCII.GetBytes(Math.Max(0, before + pages).ToString(CultureInfo.InvariantCulture)), 0);
            return true;
        }
        catch (IOException)
        {
            return false;
        }
    });
}
