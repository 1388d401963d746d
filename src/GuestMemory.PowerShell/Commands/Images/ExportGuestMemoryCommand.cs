using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Images;
using GuestMemory.Core.Userfault;

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

    /// <summary>Exports a VM that a handler serves as it is at one instant, while it runs.</summary>
    [Parameter]
    public SwitchParameter Live { get; set; }

    /// <summary>Runs at the instant of a live export, while the VMM is stopped.</summary>
    [Parameter]
    [ValidateNotNull]
    public ScriptBlock? WhilePaused { get; set; }

    /// <summary>Leaves it to the caller to pause the VM: the VMM runs while -WhilePaused does.</summary>
    [Parameter]
    public SwitchParameter NoStop { get; set; }

    /// <summary>Emits what was written.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    private protected override void ProcessVm(UffdServedVm vm)
    {
        if (!Live)
        {
            base.ProcessVm(vm);
            return;
        }

        if (Format != ImageFormat.Raw)
            throw new GuestMemoryException(GuestMemoryError.LiveUnsupported, $"-Live writes a raw image, not a {Format} one: its pages come in no order.");
        if (NoStop && WhilePaused is null)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "-NoStop is about what runs while the VM is paused (-WhilePaused); without that no VMM is stopped.");
        if (Begin(vm.MemorySize) is not { } path) return;
        var progress = new ProgressBar(this, $"Exporting the memory of {vm.Name} to {path}", vm.MemorySize);
        var info = vm.ExportLive(path, Force, new LiveExportOptions
        {
            StopsVmm = WhilePaused is not null && !NoStop,
            AtInstant = WhilePaused is null ? null : () => RunPaused(vm),
            Digest = Digest,
            Progress = progress.Report,
        }, StopToken);
        progress.Complete();
        if (PassThru) WriteObject(info);
    }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        if (Live)
            throw new GuestMemoryException(GuestMemoryError.LiveUnsupported, "-Live exports a VM that a page-fault handler serves, and no regions: their memory cannot be held as it is at one instant.");
        if (WhilePaused is not null || NoStop)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "-WhilePaused and -NoStop are of a live export (-Live).");
        if (Digest && Format != ImageFormat.Raw)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"-Digest is of a raw image, not of a {Format} one.");
        if (Format != ImageFormat.Chunked && MyInvocation.BoundParameters.ContainsKey(nameof(Compression)))
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"-Compression is of a chunked image, not of a {Format} one.");
        if (Begin(memory.Size) is not { } path) return;
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

    /// <summary>The path of the file; null where nothing is to be written.</summary>
    private string? Begin(ulong size)
    {
        if (_written)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "More than one address space came through the pipeline; each needs a file of its own. Export them one by one.");
        var path = ResolvePath(Path);
        if (!ShouldProcess(path, $"Export {Formatting.Size(size)} of guest memory as {Format}")) return null;
        _written = true;
        return path;
    }

    private void RunPaused(UffdServedVm vm)
    {
        foreach (var output in WhilePaused!.InvokeWithContext(null, [new PSVariable("_", vm)], vm)) WriteObject(output);
    }
}
