using System.Buffers.Binary;
using GuestMemory.Core;

namespace GuestMemory.Fuzz.Targets;

/// <summary>A dirty log: the start and the size of a stretch of the guest (8 bytes each), then the file.</summary>
internal static class DirtyLogTarget
{
    public static void Run(byte[] input)
    {
        if (input.Length < 16) return;
        var start = BinaryPrimitives.ReadUInt64LittleEndian(input);
        var size = BinaryPrimitives.ReadUInt64LittleEndian(input.AsSpan(8));
        using var files = new Files();
        var path = files.Write(input.AsSpan(16));
        if (!Check.TryParse(() => DirtyBitmap.Load(path), out var bitmap, GuestMemoryError.InvalidLog)) return;
        CheckBitmap(bitmap);
        Check.Same((ulong)(input.Length - 16) * 8 * MmapLogReg.PageSize, bitmap.ByteSize, "the memory that the log is about");
        SaveAndLoad(bitmap, files);
        if (Check.TryParse(() => bitmap.Slice(start, size), out var slice, GuestMemoryError.InvalidGuestAddress))
        {
            CheckBitmap(slice);
            Check.True(slice.AsWords().IsEmpty || slice.StartAddress <= start && slice.DirtyCount <= bitmap.DirtyCount, "a part has more than the whole");
            foreach (var range in slice.GetRanges()) Check.True(range.Address >= start && range.Address - start <= size && range.Size <= size - (range.Address - start), "a range leaves its part");
            Check.True(slice.And(slice).DirtyCount == slice.DirtyCount && slice.Except(slice).DirtyCount == 0 && slice.Or(slice).DirtyCount == slice.DirtyCount, "a set is not itself");
            // What lies below a part that begins high up is a hole in the file.
            if (slice.DirtyCount > 0) SaveAndLoad(slice, files);
        }

        if (!Check.TryParse(() => MmapLogReg.FromPath(path), out var log, GuestMemoryError.InvalidLog)) return;
        Check.SameItems(bitmap.AsWords(), log.GetAndReset().AsWords(), "the marks, taken out of the mapped log");
        Check.Same(0L, DirtyBitmap.Load(path).DirtyCount, "the marks that are left");
    }

    /// <summary>What holds for every bitmap.</summary>
    public static void CheckBitmap(DirtyBitmap bitmap)
    {
        Check.Same(((long)(bitmap.ByteSize / bitmap.PageSize) + (bitmap.ByteSize % bitmap.PageSize == 0 ? 0 : 1) + 63) / 64, bitmap.AsWords().Length, "the words of a bitmap");
        Check.True(bitmap.Source is not null, "a bitmap without a source");
        long count = 0;
        var end = (UInt128)bitmap.StartAddress;
        foreach (var range in bitmap.GetRanges())
        {
            Check.True(range.Size > 0 && range.Address >= end && range.Address >= bitmap.StartAddress, "the ranges are not in ascending order");
            end = (UInt128)range.Address + range.Size;
            Check.True(end <= (UInt128)bitmap.StartAddress + bitmap.ByteSize && end <= (UInt128)ulong.MaxValue + 1, "a range passes the end");
            Check.True(bitmap.IsDirty((long)((range.Address - bitmap.StartAddress) / bitmap.PageSize)), "a range begins with a clean page");
            count += range.PageCount;
        }

        Check.Same(bitmap.DirtyCount, count, "the number of dirty pages");
        Check.True(count <= bitmap.PageCount, "more pages are dirty than there are");
    }

    private static void SaveAndLoad(DirtyBitmap bitmap, Files files)
    {
        var path = files.Next();
        bitmap.Save(path);
        var again = DirtyBitmap.Load(path);
        Check.True(Pages(bitmap).SequenceEqual(Pages(again)), "the pages changed when they were saved");
    }

    /// <summary>The runs of dirty pages of the guest; a range may begin or end inside a page.</summary>
    private static IEnumerable<(ulong First, ulong Last)> Pages(DirtyBitmap bitmap) =>
        bitmap.GetRanges().Select(static range => (range.Address / MmapLogReg.PageSize, (range.Address + (range.Size - 1)) / MmapLogReg.PageSize));
}
