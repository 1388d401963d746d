using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.Fuzz.Targets;

/// <summary>The mapping list: read, checked against an image, written and read again.</summary>
internal static class MappingListTarget
{
    private const ulong ImageLength = 64UL << 30;

    public static void Run(byte[] input)
    {
        JsonCoverage.Note(input);
        if (!Check.TryParse(() => UffdMappingList.FromJson(input), out var mappings, GuestMemoryError.HandoverBadJson, GuestMemoryError.HandoverTooLarge)) return;
        var written = UffdMappingList.ToJson(mappings);
        Check.SameItems<GuestRegionUffdMapping>(mappings.ToArray(), UffdMappingList.FromJson(written).ToArray(), "the list");
        if (!Check.TryParse(() => Validate(mappings, ImageLength), out _, GuestMemoryError.InvalidMapping)) return;
        CheckRegions(mappings, ImageLength);
    }

    public static bool Validate(IReadOnlyList<GuestRegionUffdMapping> mappings, ulong imageLength)
    {
        UffdMappingList.Validate(mappings, imageLength);
        return true;
    }

    /// <summary>What the handler relies on where a list is valid.</summary>
    public static void CheckRegions(IReadOnlyList<GuestRegionUffdMapping> mappings, ulong imageLength)
    {
        UInt128 total = 0;
        foreach (var mapping in mappings)
        {
            Check.True(mapping.Size > 0 && (UInt128)mapping.Offset + mapping.Size <= imageLength, $"{mapping} is not inside the image");
            Check.True((UInt128)mapping.BaseHostVirtAddr + mapping.Size <= (UInt128)ulong.MaxValue + 1, $"{mapping} passes the last address");
            Check.True(ulong.IsPow2(mapping.PageSize) && mapping.PageSize >= HostPage.Size, $"{mapping} has no page size");
            Check.True(mapping.Size % mapping.PageSize == 0 && mapping.BaseHostVirtAddr % mapping.PageSize == 0 && mapping.Offset % HostPage.Size == 0, $"{mapping} is not aligned");
            Check.True(mapping.Contains(mapping.BaseHostVirtAddr) && mapping.Contains(mapping.BaseHostVirtAddr + (mapping.Size - 1)), $"{mapping} does not hold its ends");
            total += mapping.Size;
        }

        Check.Same((ulong)(total / HostPage.Size), UffdVmState.PagesOf(mappings), "the number of pages");
        Check.True(UffdVmState.SizeOf(UffdVmState.PagesOf(mappings)) < 1UL << 46, "the state of the VM is larger than any memory");
        var regions = UffdVmRegion.Of(mappings).OrderBy(static region => region.Base).ToArray();
        for (var i = 1; i < regions.Length; i++) Check.True((UInt128)regions[i - 1].Base + regions[i - 1].Size <= regions[i].Base, "two regions overlap");
    }
}
