namespace GuestMemory.Core.Images;

/// <summary>
/// Memory images of any format as guest memory, to be read. Nothing is read but the headers: plain images are mapped, or read where they lie on no pages, and
/// compressed ones are unpacked block by block when they are read. What a header says is checked against the file before it is believed.
/// </summary>
public static class MemoryImage
{
    // Above, mappings and descriptors are not wasted on it.
    private const int MaxMappings = 64;
    private const int VerifiedAtOnce = 4 << 20;

    // What is recognized, to be refused by its name instead of being taken for plain memory.
    private static readonly (byte[] Magic, string What)[] s_refused =
    [
        ([.. "QEVM"u8], "a migration stream of QEMU (migrate to a file, savevm), whose pages are mixed with the state of devices; QEMU's dump-guest-memory writes an image"),
        ([.. "LibvirtQemudSave"u8], "a save file of libvirt (virsh save); 'virsh dump --memory-only' writes an image"),
        ([.. "LibvirtQemudPart"u8], "an incomplete save file of libvirt (virsh save); 'virsh dump --memory-only' writes an image"),
        ([0x11, 0x22, 0x33, 0x44], "a channel of a QEMU migration with multifd; QEMU's dump-guest-memory writes an image"),
        ([.. "DISKDUMP"u8], "a dump of diskdump"),
        ([.. "PAGEDU64"u8], "a crash dump of Windows"),
        ([.. "PAGEDUMP"u8], "a crash dump of Windows"),
        ([.. "GMDIRTY1"u8], "the file of a dirty bitmap"),
        ([.. "QFI"u8, 0xfb], "a disk image (qcow2)"),
        ([0x1f, 0x8b, 8], "a file that is compressed with gzip; unpack it first"),
        ([0x28, 0xb5, 0x2f, 0xfd], "a file that is compressed with zstd; unpack it first"),
        ([0xfd, (byte)'7', (byte)'z', (byte)'X', (byte)'Z', 0], "a file that is compressed with xz; unpack it first"),
        ([4, 0x22, 0x4d, 0x18], "a file that is compressed with lz4; unpack it first"),
    ];

    /// <summary>
    /// Opens an image. The file stays locked against writers that ask until its regions are disposed of; their disposal is the caller's. Where it is cut off
    /// meanwhile, reading what is gone is an error (PageNotAccessible).
    /// </summary>
    /// <param name="path">The file.</param>
    /// <param name="options">How.</param>
    /// <param name="cancellation">Ends it; nothing stays open.</param>
    /// <returns>Its memory, in regions that can be read and not be written.</returns>
    /// <exception cref="GuestMemoryException">
    /// ImageNotFound, NotAFile, ImageInUse (it is being written); InvalidImage: it is damaged, cut off, or contradicts itself; ImageUnsupported; LayoutMismatch;
    /// DigestNotFound, DigestMismatch; ValueNotSupported: a layout for a format that has its addresses itself; what mapping it throws.
    /// </exception>
    public static GuestMemoryMmap Open(string path, ImageOpenOptions? options = null, CancellationToken cancellation = default)
    {
        options ??= new ImageOpenOptions();
        var image = ImageBytes.Open(path, options.Format, cancellation);
        try
        {
            var format = options.Format ?? FindFormat(image);
            if (options.Layout is not null && format is not (ImageFormat.Raw or ImageFormat.Diff or ImageFormat.Chunked or ImageFormat.MemoryRanges))
                throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"{path} is a {format} image, which has its guest addresses itself. Leave the layout out.");
            var isCompared = options.Verify && DigestCheck.Verify(image, done => options.Progress?.Invoke(done, image.FileLength), cancellation);
            var regions = Read(image, format, options, out var blocks, cancellation);
            var hasChecksums = blocks is ChunkedBlocks or AvmlBlocks or KdumpBlocks { HasChecksums: true };
            if (options.Verify && !isCompared && !hasChecksums)
                throw new GuestMemoryException(GuestMemoryError.DigestNotFound, $"There is nothing to verify {path} by: no {Path.GetFileName(DigestSidecar.PathOf(path))} lies beside it, and a {format} image {(blocks is null ? "" : "like it ")}has no checksums.");
            cancellation.ThrowIfCancellationRequested();
            var memory = Map(image, regions, blocks, format, options.Name);
            if (options.Verify && hasChecksums) VerifyBlocks(memory, path, options.Progress, cancellation);
            return memory;
        }
        finally
        {
            image.Leave();
        }
    }

    /// <summary>The format that the first bytes of a file tell; Raw where they tell none.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="GuestMemoryException">ImageUnsupported: it is something else; ImageNotFound, NotAFile, ImageInUse, InvalidImage.</exception>
    public static ImageFormat FindFormat(string path)
    {
        var image = ImageBytes.Open(path);
        try
        {
            return FindFormat(image);
        }
        finally
        {
            image.Leave();
        }
    }

    internal static GuestMemoryException Invalid(string path, string why) => new(GuestMemoryError.InvalidImage, $"{path} is not a whole image of memory: {why}.");

    internal static GuestMemoryException Unsupported(string path, string what) => new(GuestMemoryError.ImageUnsupported, $"{path} is {what}; it cannot be opened as an image of memory.");

    private static ImageFormat FindFormat(ImageBytes image)
    {
        Span<byte> buffer = stackalloc byte[16];
        ReadOnlySpan<byte> begin = buffer[..image.TryRead(0, buffer, out _)];
        foreach (var (magic, what) in s_refused)
        {
            if (begin.StartsWith(magic)) throw Unsupported(image.Path, what);
        }

        return begin.StartsWith(ElfCoreFile.Magic) ? ImageFormat.ElfCore
            : begin.StartsWith(LimeFile.LimeMagic) ? ImageFormat.LiME
            : begin.StartsWith(LimeFile.AvmlMagic) ? ImageFormat.Avml
            : begin.StartsWith(KdumpBlocks.Magic) ? ImageFormat.Kdump
            : image.IsPlain && ChunkedImage.IsOne(image.File) ? ImageFormat.Chunked
            : Path.GetFileName(image.Path) == "memory-ranges" && File.Exists(MemoryRangesState.PathOf(image.Path)) ? ImageFormat.MemoryRanges
            : ImageFormat.Raw;
    }

    /// <summary>The regions of an image, each with the pieces that it has in the file, or in its blocks.</summary>
    private static List<ImageExtent[]> Read(ImageBytes image, ImageFormat format, ImageOpenOptions options, out ImageBlocks? blocks, CancellationToken cancellation)
    {
        blocks = null;
        switch (format)
        {
            case ImageFormat.Raw or ImageFormat.Diff:
                return ImageMap.Regions((options.Layout ?? ImageLayout.Host).Place(image.Length, image.Path), image.Path);
            case ImageFormat.MemoryRanges:
                return ImageMap.Regions((options.Layout ?? MemoryRangesState.Read(image.Path)).Place(image.Length, image.Path), image.Path);
            case ImageFormat.ElfCore:
                return ImageMap.Regions(ElfCoreFile.Read(image), image.Path);
            case ImageFormat.LiME:
                var pieces = LimeFile.Read(image, out var omitted, cancellation);
                WarnOfLeftOut(omitted);
                return ImageMap.Regions(pieces, image.Path);
            case ImageFormat.Chunked:
                if (!image.IsPlain) throw Unsupported(image.Path, "a flattened dump");
                var chunks = ChunkedBlocks.Open(image);
                blocks = chunks;
                // Each by itself: what follows in the memory need not in the file.
                return [.. (options.Layout ?? ImageLayout.Host).Place(chunks.Length, image.Path).OrderBy(static extent => extent.Address).Select(static extent => new[] { extent })];
            case ImageFormat.Avml:
                var packed = AvmlBlocks.Open(image, out var ranges, cancellation);
                blocks = packed;
                WarnOfLeftOut(packed.Omitted);
                return ImageMap.Regions(ranges, image.Path);
            case ImageFormat.Kdump:
                var dump = KdumpBlocks.Open(image, out var runs);
                blocks = dump;
                if (dump.Omitted > 0)
                    options.Warning?.Invoke($"{dump.Omitted} bytes of memory were left out of {image.Path} when it was written (zeros, caches, free pages or pages of processes); they read as zeros.");
                return ImageMap.Regions(runs, image.Path);
            default:
                throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"{format} is no format of an image.");
        }

        void WarnOfLeftOut(ulong bytes)
        {
            if (bytes > 0) options.Warning?.Invoke($"{bytes} bytes are not in {image.Path}, as AVML leaves out blocks of 16 MiB that are zeros; they read as zeros.");
        }
    }

    private static GuestMemoryMmap Map(ImageBytes image, List<ImageExtent[]> regions, ImageBlocks? blocks, ImageFormat format, string name)
    {
        var made = new List<GuestMemoryRegion>(regions.Count);
        try
        {
            foreach (var extents in regions)
            {
                var address = new GuestAddress(extents[0].Address);
                var called = regions.Count == 1 ? name : $"{name}-{made.Count}";
                if (blocks is null && regions.Count <= MaxMappings && image.IsPlain && extents is [var whole] && whole.FileSize == whole.Size && whole.FileOffset % HostPage.Size == 0)
                {
                    made.Add(new GuestRegionMmap(
                        new MmapRegionBuilder(whole.Size).WithFile(image.File, whole.FileOffset).WithProtection(MemoryProtection.Read).WithFlags(MapFlags.Private | MapFlags.NoReserve).Build(), address, called));
                }
                else
                {
                    made.Add(new GuestRegionImage(blocks is null ? new ExtentMemory(image, extents)
                        : new BlockMemory(image, blocks, blocks is ChunkedBlocks ? extents[0].FileOffset : extents[0].Address, extents[^1].End - extents[0].Address), image.Path, address, called, format));
                }
            }

            return GuestMemoryMmap.FromRegions(made);
        }
        catch
        {
            foreach (var region in made) region.Dispose();
            throw;
        }
    }

    /// <summary>Unpacks everything; where that fails nothing of the memory stays.</summary>
    private static void VerifyBlocks(GuestMemoryMmap memory, string path, Action<ulong, ulong>? progress, CancellationToken cancellation)
    {
        var buffer = ImageBuffers.Get();
        ulong before = 0;
        var total = memory.Size;
        try
        {
            foreach (var region in memory.Regions)
            {
                for (ulong at = 0; at < region.Size; at += VerifiedAtOnce)
                {
                    cancellation.ThrowIfCancellationRequested();
                    memory.ReadExact(new GuestAddress(region.GuestAddress + at), buffer.AsSpan(0, (int)Math.Min(VerifiedAtOnce, region.Size - at)));
                    progress?.Invoke(before + at, total);
                }

                before += region.Size;
            }
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.PageNotAccessible)
        {
            Release();
            throw new GuestMemoryException(GuestMemoryError.InvalidImage, $"{path} is damaged: {exception.Message}", exception);
        }
        catch
        {
            Release();
            throw;
        }
        finally
        {
            ImageBuffers.Return(buffer);
        }

        void Release()
        {
            foreach (var region in memory.Regions) region.Dispose();
        }
    }
}
