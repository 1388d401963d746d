using System.Text.Json;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;
using GuestMemory.UffdHost;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Fuzz.Targets;

/// <summary>JSON in a memfd that another process gave. The first byte says what is expected: figures, written pages, the list of a VM, what is known of an image, the mappings of a VM.</summary>
internal static class SharedJsonTarget
{
    public static void Run(byte[] input)
    {
        if (input.Length < 1) return;
        JsonCoverage.Note(input.AsSpan(1));
        Check.ClosesEverything(() =>
        {
            using var file = MakeFile(input.AsSpan(1));
            switch (input[0])
            {
                case (byte)'f':
                    if (Check.TryParse(() => UffdStatus.ReadFigures(file), out var figures, GuestMemoryError.ControlFailed)) ControlTarget.CheckFigures(figures);
                    break;
                case (byte)'w':
                    if (Check.TryParse(() => WrittenPages.FromFile(file), out var bitmaps, GuestMemoryError.ControlFailed)) CheckWritten(bitmaps);
                    break;
                case (byte)'l':
                    if (Check.TryParse(() => VmRecord.ReadList(file), out var list, GuestMemoryError.InvalidMapping)) CheckList(list);
                    break;
                case (byte)'m':
                    if (Check.TryParse(() => UffdMappingList.FromFile(file), out var mappings, GuestMemoryError.ControlFailed)) CheckMappings(mappings);
                    break;
                case (byte)'i':
                    if (Check.TryParse(() => KeptImages.Read(file), out var record, GuestMemoryError.ImageChanged)) CheckRecord(record);
                    break;
            }
        });
    }

    /// <summary>A sealed memfd with a content.</summary>
    public static SafeDescriptor MakeFile(ReadOnlySpan<byte> content, long length = 0)
    {
        var file = Memfd.CreateSealed("fuzz", Math.Max(length, content.Length), 0);
        using var handle = new SafeFileHandle(file.Number, ownsHandle: false);
        RandomAccess.Write(handle, content, 0);
        return file;
    }

    private static void CheckWritten(DirtyBitmap[] bitmaps)
    {
        foreach (var bitmap in bitmaps) DirtyLogTarget.CheckBitmap(bitmap);
        using var file = WrittenPages.ToFile(bitmaps);
        var again = WrittenPages.FromFile(file);
        Check.Same(bitmaps.Length, again.Length, "the number of bitmaps");
        for (var i = 0; i < again.Length; i++) Check.SameItems(bitmaps[i].AsWords(), again[i].AsWords(), "the bits");
    }

    private static void CheckRecord(ImageRecord record)
    {
        using var file = JsonFile.Create("fuzz", record, HostJson.Default.ImageRecord);
        var again = KeptImages.Read(file);
        Check.Same(string.Join(' ', record.Files), string.Join(' ', again.Files), "the files");
        Check.Same(record.Layout, again.Layout, "the layout");
    }

    private static void CheckMappings(IReadOnlyList<GuestRegionUffdMapping> mappings)
    {
        MappingListTarget.CheckRegions(mappings, ulong.MaxValue);
        using var file = UffdMappingList.ToFile(mappings);
        Check.SameItems<GuestRegionUffdMapping>(mappings.ToArray(), UffdMappingList.FromFile(file).ToArray(), "the mappings");
    }

    private static void CheckList(VmList list)
    {
        MappingListTarget.CheckRegions(list.Mappings, ulong.MaxValue);
        using var file = JsonFile.Create("fuzz", list, HostJson.Default.VmList);
        var again = VmRecord.ReadList(file);
        Check.Same(JsonSerializer.Serialize(list, HostJson.Default.VmList), JsonSerializer.Serialize(again, HostJson.Default.VmList), "the list");
    }
}
