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
    }
}
