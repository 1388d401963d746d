using System.Text.Json;
using System.Text.Json.Serialization;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>The mapping list of a hand-over: made of regions, to and from its JSON, and checked.</summary>
public static class UffdMappingList
{
    /// <summary>The largest JSON document that is read, in bytes; a region takes about 140.</summary>
    public const int MaxJsonBytes = 1 << 20;

    // What was a list of the largest size on its way here, whatever numbers look like when they are written anew.
    private const int MaxFileBytes = 4 << 20;

    // The largest that x86-64 has; a page may have to be put together in the handler's memory.
    private const ulong MaxPageSize = 1 << 30;

    // More than a processor's guests can address.
    private const ulong MaxTotal = 1UL << 46;

    /// <summary>
    /// The mappings of a guest's regions, in ascending order of guest addresses: the image is the dense concatenation of the
    /// regions, gaps between them are not in it.
    /// </summary>
    public static IReadOnlyList<GuestRegionUffdMapping> FromMemory(GuestMemoryMmap memory)
    {
        var mappings = new List<GuestRegionUffdMapping>(memory.Regions.Count);
        ulong offset = 0;
        foreach (var region in memory.Regions)
        {
            if (!HostPage.IsAligned(region.Size, region.PageSize))
            {
                throw new GuestMemoryException(GuestMemoryError.UnalignedSize,
                    $"The size of region {region}, {region.Size} bytes, is not a multiple of its page size, {region.PageSize} bytes: userfaultfd works on whole pages.");
            }

            mappings.Add(new GuestRegionUffdMapping(region.GetMmapRegion().HostAddress, region.Size, offset, region.PageSize));
            offset += region.Size;
        }

        return mappings;
    }

    /// <summary>The compact JSON that goes over the socket.</summary>
    public static byte[] ToJson(IReadOnlyList<GuestRegionUffdMapping> mappings) => JsonSerializer.SerializeToUtf8Bytes(ToWire(mappings), WireJson.Default.WireMappingArray);

    /// <summary>
    /// Reads a mapping list. Unknown members are ignored, as upstream does; where page_size is missing page_size_kib is taken, in
    /// bytes as every release sent it, and without either 4096.
    /// </summary>
    /// <exception cref="GuestMemoryException">HandoverTooLarge, HandoverBadJson.</exception>
    public static IReadOnlyList<GuestRegionUffdMapping> FromJson(ReadOnlySpan<byte> json)
    {
        if (json.Length > MaxJsonBytes) throw TooLarge(json.Length);
        try
        {
            var wire = JsonSerializer.Deserialize(json, WireJson.Default.WireMappingArray);
            if (wire is null || Array.Exists(wire, mapping => mapping is null)) throw new JsonException("null stands where a mapping must be");
            return [.. wire.Select(FromWire)];
        }
        catch (JsonException exception)
        {
            throw BadJson(exception);
        }
    }

    /// <summary>Checks that a list makes sense for an image of <paramref name="imageLength"/> bytes.</summary>
    /// <exception cref="GuestMemoryException">InvalidMapping, saying which entry is wrong and how.</exception>
    public static void Validate(IReadOnlyList<GuestRegionUffdMapping> mappings, ulong imageLength)
    {
        if (mappings.Count == 0) throw Invalid("The mapping list is empty.");
        ulong total = 0;
        foreach (var m in mappings)
        {
            if (m.PageSize < HostPage.Size || m.PageSize > MaxPageSize || !ulong.IsPow2(m.PageSize)) throw Invalid($"The page size of {Show(m)} is not a power of two of at least {HostPage.Size} bytes and at most {MaxPageSize}.");
            if (m.Size == 0) throw Invalid($"{Show(m)} has no bytes.");
            if (!HostPage.IsAligned(m.Size, m.PageSize) || !HostPage.IsAligned(m.BaseHostVirtAddr, m.PageSize) || !HostPage.IsAligned(m.Offset, HostPage.Size))
                throw Invalid($"{Show(m)} is not aligned to its page size.");
            if (m.BaseHostVirtAddr + m.Size < m.Size) throw Invalid($"{Show(m)} passes the last address, 2^64 - 1.");
            if (m.Offset > imageLength || m.Size > imageLength - m.Offset)
                throw Invalid($"{Show(m)} ends at offset {(UInt128)m.Offset + m.Size} of an image that is {imageLength} bytes long. Is it the image of this VM?");
            if (m.Size > MaxTotal - total) throw Invalid($"The mappings have more than {MaxTotal} bytes in all.");
            total += m.Size;
        }

        var sorted = mappings.OrderBy(m => m.BaseHostVirtAddr).ToArray();
        for (var i = 1; i < sorted.Length; i++)
        {
            if (sorted[i].BaseHostVirtAddr - sorted[i - 1].BaseHostVirtAddr < sorted[i - 1].Size)
                throw Invalid($"{Show(sorted[i - 1])} and {Show(sorted[i])} overlap in the VMM's address space.");
        }

        if (total > imageLength) throw Invalid($"The mappings have more bytes in all than the image, which is {imageLength} bytes long.");
    }

    /// <summary>Checks that a memfd can be the memory of a VM: sealed against shrinking, of pages as the list says, and long enough.</summary>
    /// <exception cref="GuestMemoryException">HandoverNotMemfd; InvalidMapping, saying which entry does not fit it.</exception>
    internal static void CheckMemory(IReadOnlyList<GuestRegionUffdMapping> mappings, SafeDescriptor memory)
    {
        if ((Memfd.Seals(memory) & Memfd.F_SEAL_SHRINK) == 0)
            throw new GuestMemoryException(GuestMemoryError.HandoverNotMemfd, "The second descriptor that came with the hand-over is not a memfd that is sealed against shrinking (F_SEAL_SHRINK).");
        var length = FileStatus.Get(memory).stx_size;
        var pageSize = (ulong)FileStatus.HugetlbfsPageSize(memory);
        foreach (var m in mappings)
        {
            if (m.Offset > length || m.Size > length - m.Offset) throw Invalid($"{Show(m)} ends at offset {(UInt128)m.Offset + m.Size} of a memfd that is {length} bytes long.");
            if (m.PageSize < pageSize) throw Invalid($"{Show(m)} has pages of {m.PageSize} bytes, and the memfd behind it pages of {pageSize}.");
        }
    }

    /// <summary>A memfd with the same JSON, for another process.</summary>
    internal static SafeDescriptor ToFile(IReadOnlyList<GuestRegionUffdMapping> mappings) => JsonFile.Create("uffd-mappings", ToWire(mappings), WireJson.Default.WireMappingArray);

    /// <summary>Reads such a memfd; the list is checked but for the length of the image.</summary>
    /// <exception cref="GuestMemoryException">ControlFailed: it holds no mapping list.</exception>
    internal static IReadOnlyList<GuestRegionUffdMapping> FromFile(SafeDescriptor file)
    {
        try
        {
            IReadOnlyList<GuestRegionUffdMapping> mappings = [.. JsonFile.Read(file, MaxFileBytes, WireJson.Default.WireMappingArray).Select(static m => FromWire(m ?? throw new JsonException("null stands where a mapping must be")))];
            Validate(mappings, ulong.MaxValue);
            return mappings;
        }
        catch (Exception exception) when (exception is JsonException or IOException or NotSupportedException or GuestMemoryException { Error: GuestMemoryError.InvalidMapping })
        {
            throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"The handler's process sent a mapping list that cannot be used: {JsonErrorText.Of(exception)}", exception);
        }
    }

    internal static GuestMemoryException BadJson(JsonException exception)
    {
        var what = JsonErrorText.Of(exception)
            .Replace("type 'WireMapping'", "a mapping", StringComparison.Ordinal)
            .Replace("WireMapping", "mapping", StringComparison.Ordinal);
        return new GuestMemoryException(GuestMemoryError.HandoverBadJson, $"The mapping list is not the expected JSON: {what}", exception);
    }

    internal static GuestMemoryException TooLarge(long length) =>
        new(GuestMemoryError.HandoverTooLarge, $"The mapping list has {length} bytes or more; at most {MaxJsonBytes} are read.");

    private static WireMapping[] ToWire(IReadOnlyList<GuestRegionUffdMapping> mappings) => [.. mappings.Select(static m => new WireMapping(m.BaseHostVirtAddr, m.Size, m.Offset, m.PageSize, m.PageSizeKib))];

    private static GuestRegionUffdMapping FromWire(WireMapping m) => new(m.BaseHostVirtAddr, m.Size, m.Offset, m.PageSize ?? m.PageSizeKib ?? 4096);

    private static GuestMemoryException Invalid(string message) => new(GuestMemoryError.InvalidMapping, message);

    private static string Show(GuestRegionUffdMapping m) => $"The mapping 0x{m.BaseHostVirtAddr:x} + 0x{m.Size:x} at offset 0x{m.Offset:x}";
}

/// <summary>One mapping as it stands in JSON, in the order of its members.</summary>
internal sealed record WireMapping(
    [property: JsonPropertyName("base_host_virt_addr"), JsonRequired] ulong BaseHostVirtAddr,
    [property: JsonPropertyName("size"), JsonRequired] ulong Size,
    [property: JsonPropertyName("offset"), JsonRequired] ulong Offset,
    [property: JsonPropertyName("page_size")] ulong? PageSize,
    [property: JsonPropertyName("page_size_kib")] ulong? PageSizeKib);

[JsonSourceGenerationOptions(MaxDepth = 8)]
[JsonSerializable(typeof(WireMapping[]))]
internal sealed partial class WireJson : JsonSerializerContext;
