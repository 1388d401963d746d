using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Images;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Export-GuestMemory: memory to an image file.</summary>
[Cmdlet(VerbsData.Export, "GuestMemory", SupportsShouldProcess = true)]
[OutputType(typeof(ImageInfo))]
public sealed class ExportGuestMemoryCommand : VmMemoryCmdlet
{
    private bool _written;

    /// <summary>The image file.</summary>
    [Parameter(Mandatory = true, Position = 0)]
    [ValidateNotNullOrEmpty]
    public string Path { get; set; } = "";

    /// <summary>The whole memory, or only the dirty pages.</summary>
    [Parameter]
    public ImageFormat Format { get; set; } = ImageFormat.Raw;

    /// <summary>How the chunks of a chunked image are compressed.</summary>
    [Parameter]
    public ChunkCompression Compression { get; set; }

    /// <summary>Computes the SHA-256 of a raw image.</summary>
    [Parameter]
    public SwitchParameter Digest { get; set; }

    /// <summary>Leaves the pages of a diff marked as dirty.</summary>
    [Parameter]
    public SwitchParameter KeepDirty { get; set; }

    /// <summary>Replaces a file that is there; patches an image that is being served.</summary>
    [Parameter]
    public SwitchParameter Force { get; set; }

    /// <summary>Emits what was written.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        if (_written)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "More than one address space came through the pipeline; each needs a file of its own. Export them one by one.");
        if (Digest && Format != ImageFormat.Raw)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"-Digest is of a raw image, not of a {Format} one.");
        if (Format != ImageFormat.Chunked && MyInvocation.BoundParameters.ContainsKey(nameof(Compression)))
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"-Compression is of a chunked image, not of a {Format} one.");
        var path = ResolvePath(Path);
        if (!ShouldProcess(path, $"Export {Formatting.Size(memory.Size)} of guest memory as {Format}")) return;
        _written = true;
        var progress = new ProgressBar(this, $"Exporting guest memory to {path}", memory.Size);
        var info = Format switch
        {
            ImageFormat.Raw => RawImage.WriteFull(memory, path, Force, Digest, progress.Report, StopToken),
            ImageFormat.Chunked => ChunkedImage.Write(memory, path, Force, Compression, progress.Report, StopToken),
            _ => RawImage.WriteDirty(memory, path, Force, KeepDirty, progress.Report, StopToken),
        };
        progress.Complete();
        if (PassThru) WriteObject(info);
    }
}
