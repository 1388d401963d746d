using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.Fuzz.Targets;

/// <summary>A record of touches of an image of 1000 pages and a part of one.</summary>
internal static class TouchRecordTarget
{
    private const ulong Pages = 1001;

    public static void Run(byte[] input)
    {
        var length = ((Pages - 1) * HostPage.Size) + 100;
        using var files = new Files();
        // Before the record, which must not be older.
        var image = files.Next();
        using (var file = File.Create(image)) file.SetLength((long)length);
        var path = files.Write(input);
        if (!Check.TryParse(() => TouchRecord.Load(path, length), out var pages, GuestMemoryError.InvalidRecord)) return;
        Check.True(pages.All(static page => page < Pages) && pages.Distinct().Count() == pages.Length, "a page is not of the image, or stands there twice");
        var replay = new UffdReplay(pages, length);
        Check.Same(pages.Length, replay.PageCount, "the pages of the replay");
        Check.Same((long)pages.Length, replay.Runs.Sum(static run => run.Count), "the pages of the runs");
        Check.True(replay.Runs.All(static run => run.First < run.End && run.End <= (long)Pages), "a run leaves the image");
        var again = files.Next();
        TouchRecord.Save(again, length, pages);
        Check.SameItems<uint>(pages, TouchRecord.Load(again, length), "the record");
        if (TouchRecord.HasPages(path)) ReadPages(image, path, pages);
    }

    /// <summary>Each page of the record comes out of it, and all others out of the image.</summary>
    private static void ReadPages(string image, string record, uint[] pages)
    {
        if (!Check.TryParse(() => ImageFile.OpenSource(ImageFile.OpenAll(image, [], record)), out var source, GuestMemoryError.InvalidRecord)) return;
        using (source)
        {
            var data = File.ReadAllBytes(record).AsSpan((int)TouchRecord.DataOffset(pages.Length));
            using var scratch = new PageScratch();
            for (uint page = 0; page < Pages; page++)
            {
                Check.Same(0, source.Locate(page * HostPage.Size, HostPage.Size, scratch, out var run), "an error");
                Check.Same(HostPage.Size, run.Length, "the bytes of a page");
                var place = Array.IndexOf(pages, page);
                if (place < 0) Check.True(IsZero(run), "a page of the image is not zero");
                else Check.True(Equals(run, data.Slice(place * (int)HostPage.Size, (int)HostPage.Size)), "a page is not that of the record");
            }
        }
    }

    private static unsafe bool IsZero(PageRunData run) => run.Data is null || !new ReadOnlySpan<byte>(run.Data, (int)run.Length).ContainsAnyExcept((byte)0);

    private static unsafe bool Equals(PageRunData run, ReadOnlySpan<byte> page) =>
        run.Data is null ? !page.ContainsAnyExcept((byte)0) : new ReadOnlySpan<byte>(run.Data, (int)run.Length).SequenceEqual(page);
}
