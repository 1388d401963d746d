namespace GuestMemory.Core.Images;

/// <summary>How memory is laid down in a file.</summary>
public enum ImageFormat
{
    /// <summary>The regions one behind the other, in full; pages of zeros are holes in the file. What Firecracker calls a full memory file.</summary>
    Raw,
    /// <summary>The same layout, with only the pages that are dirty: patched into a base image, or alone in a sparse file.</summary>
    Diff,
    /// <summary>The regions one behind the other, in chunks that are compressed independently; served by a page-fault handler, and opened as memory.</summary>
    Chunked,
    /// <summary>An ELF core file with a segment a region at its guest address, as QEMU's dump-guest-memory writes it.</summary>
    ElfCore,
    /// <summary>LiME, version 1: a header with the guest addresses before each region; what acquisition tools write and volatility reads.</summary>
    LiME,
    /// <summary>AVML, version 2: blocks of at most 16 MiB with their guest addresses, compressed with Snappy; blocks of zeros are left out.</summary>
    Avml,
    /// <summary>The compressed dump of kdump, page by page, as makedumpfile and QEMU's dump-guest-memory write it, also flattened; only read.</summary>
    Kdump,
    /// <summary>The memory-ranges file of a cloud-hypervisor snapshot, whose guest addresses are in the state.json beside it; only read.</summary>
    MemoryRanges,
    /// <summary>An image of a store (GuestMemory.Core.Store), whose chunks other images may have, too; it is published, and no file.</summary>
    Stored,
}

/// <summary>What an export wrote.</summary>
/// <param name="Path">The file.</param>
/// <param name="Format">Its format.</param>
/// <param name="Size">The bytes of memory that it stands for: the sum of the regions' sizes.</param>
/// <param name="BytesWritten">The bytes that were written; the rest is holes, or as it was.</param>
/// <param name="PageCount">The pages that were written, of the host's page size.</param>
/// <param name="Digest">The SHA-256 of the whole file in lower-case hexadecimal, where it was asked for; it is in FILE.sha256, too.</param>
public sealed record ImageInfo(string Path, ImageFormat Format, ulong Size, ulong BytesWritten, long PageCount, string? Digest);
