using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Images;
using GuestMemory.Core.Userfault;
using GuestMemory.Core.VmControl;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Export-GuestMemory: memory to an image file.</summary>
[Cmdlet(VerbsData.Export, "GuestMemory", SupportsShouldProcess = true)]
[OutputType(typeof(ImageInfo), typeof(Job))]
public sealed class ExportGuestMemoryCommand : VmMemoryCmdlet
{
    private readonly HashSet<string> _written = new(StringComparer.Ordinal);
    private string? _pathOfRegions;

    /// <summary>The image file; each address space has its own.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipelineByPropertyName = true)]
    [ValidateNotNullOrEmpty]
    public string Path { get; set; } = "";

    /// <summary>The format of the file, which has the whole memory or only the dirty pages.</summary>
    [Parameter]
    [ValidateSet(nameof(ImageFormat.Raw), nameof(ImageFormat.Diff), nameof(ImageFormat.Chunked), nameof(ImageFormat.ElfCore), nameof(ImageFormat.LiME), nameof(ImageFormat.Avml))]
    public ImageFormat Format { get; set; } = ImageFormat.Raw;

    /// <summary>How the chunks of a chunked image are compressed.</summary>
    [Parameter]
    public ChunkCompression Compression { get; set; }

    /// <summary>Computes the SHA-256 of the file, and writes it beside the file.</summary>
    [Parameter]
    public SwitchParameter Digest { get; set; }

    /// <summary>Leaves the pages of a diff marked as dirty.</summary>
    [Parameter]
    public SwitchParameter KeepDirty { get; set; }

    /// <summary>Replaces a file that is there; patches an image that is being served.</summary>
    [Parameter]
    public SwitchParameter Force { get; set; }

    /// <summary>Exports a VM that a handler serves, or one of this shell, as it is at one instant, while it runs.</summary>
    [Parameter]
    public SwitchParameter Live { get; set; }

    /// <summary>Runs at the instant of a live export, while the VM is stopped.</summary>
    [Parameter]
    [ValidateNotNull]
    public ScriptBlock? WhilePaused { get; set; }

    /// <summary>Leaves it to the caller to pause the VM: the VMM runs while -WhilePaused does.</summary>
    [Parameter]
    public SwitchParameter NoStop { get; set; }

    /// <summary>Exports in the background, as a job.</summary>
    [Parameter]
    public SwitchParameter AsJob { get; set; }

    /// <summary>Emits what was written.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        // Regions of another file are another address space.
        var path = Path;
        if (HasRegions && _pathOfRegions is not null && path != _pathOfRegions)
        {
            Path = _pathOfRegions;
            ProcessRegions();
            Path = path;
        }

        base.ProcessRecord();
        _pathOfRegions = HasRegions ? path : null;
    }

    private protected override void ProcessVm(UffdServedVm vm)
    {
        if (Live)
        {
            ExportLive(vm, vm.Name, vm.MemorySize, (path, options, stop) => vm.ExportLive(path, Force, options, stop));
            return;
        }

        var memory = vm.OpenMemory();
        Export(memory, () =>
        {
            foreach (var region in memory.Regions) region.Dispose();
        });
    }

    private protected override void ProcessOther(IGuestMemorySource source)
    {
        if (source is not RefusedMemory { Value: GuestVm vm }) base.ProcessOther(source);
        else if (Live) ExportLive(vm, vm.Name, vm.Memory.Size, (path, options, stop) => vm.GetKvmVm().ExportLive(path, Force, options, stop));
        else Process(vm.Memory);
    }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory) => Export(memory, static () => { });

    /// <param name="memory">The memory.</param>
    /// <param name="release">Frees it, when it was exported or could not be.</param>
    private void Export(GuestMemoryMmap memory, Action release)
    {
        string? path = null;
        try
        {
            if (Live)
                throw new GuestMemoryException(GuestMemoryError.LiveUnsupported, "-Live exports a VM that a page-fault handler serves (Get-UffdVm) or one of this shell (Get-GuestVm), and no regions: who writes them cannot be held.");
            if (WhilePaused is not null || NoStop)
                throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "-WhilePaused and -NoStop are of a live export (-Live).");
            if (Digest && Format == ImageFormat.Diff)
                throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "-Digest is of a whole image, and a diff is none.");
            if (Format != ImageFormat.Chunked && MyInvocation.BoundParameters.ContainsKey(nameof(Compression)))
                throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"-Compression is of a chunked image, not of a {Format} one.");
            path = Begin(memory.Size);
        }
        finally
        {
            if (path is null) release();
        }

        if (path is null) return;
        Run($"Exporting guest memory to {path}", memory.Size, memory, release, (progress, stop) =>
        {
            // A job goes on when the cmdlet has ended.
            using var hold = memory.Hold();
            return Format switch
            {
                ImageFormat.Diff => RawImage.WriteDirty(memory, path, Force, KeepDirty, progress, stop),
                ImageFormat.Chunked => ChunkedImage.Write(memory, path, Force, Compression, Digest, progress, stop),
                ImageFormat.ElfCore => ElfCoreWriter.Write(memory, path, Force, Digest, null, progress, stop),
                ImageFormat.LiME => LimeWriter.Write(memory, path, Force, Digest, progress, stop),
                ImageFormat.Avml => AvmlWriter.Write(memory, path, Force, Digest, progress, stop),
                _ => RawImage.WriteFull(memory, path, Force, Digest, progress, stop),
            };
        });
    }

    /// <summary>Exports here and now, or as a job.</summary>
    private void Run(string activity, ulong total, object target, Action release, Func<Action<ulong>, CancellationToken, ImageInfo> write)
    {
        if (AsJob)
        {
            var job = new ExportJob(MyInvocation.Line.Trim(), activity, total, write, release, exception => ToRecord(exception, target));
            JobRepository.Add(job);
            job.Start();
            WriteObject(job);
            return;
        }

        try
        {
            var progress = new ProgressBar(this, activity, total);
            var info = write(progress.Report, StopToken);
            progress.Complete();
            if (PassThru) WriteObject(info);
        }
        finally
        {
            release();
        }
    }

    /// <summary>The path of the file; null where nothing is to be written.</summary>
    private string? Begin(ulong size)
    {
        var path = ResolvePath(Path);
        if (_written.Contains(path))
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"More than one address space came through the pipeline for {path}; each needs a file of its own. Give -Path a script block, such as {{ \"$($_.Name).mem\" }}, or export them one by one.");
        if (!ShouldProcess(path, $"Export {Formatting.Size(size)} of guest memory as {Format}")) return null;
        _written.Add(path);
        return path;
    }

    private void ExportLive(object vm, string name, ulong size, Func<string, LiveExportOptions, CancellationToken, ImageInfo> export)
    {
        if (Format != ImageFormat.Raw)
            throw new GuestMemoryException(GuestMemoryError.LiveUnsupported, $"-Live writes a raw image, not a {Format} one: its pages come in no order. Write it raw, and make the other of that file: Import-GuestMemory FILE | Export-GuestMemory OTHER -Format {Format}.");
        if (NoStop && WhilePaused is null)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "-NoStop is about what runs while the VM is paused (-WhilePaused); without that nothing is stopped.");
        if (AsJob && WhilePaused is not null)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "-WhilePaused runs in this shell, and the export of -AsJob beside it: use one of them.");
        if (Begin(size) is not { } path) return;
        Run($"Exporting the memory of {name} to {path}", size, vm, static () => { }, (progress, stop) => export(path, new LiveExportOptions
        {
            StopsVmm = WhilePaused is not null && !NoStop,
            AtInstant = WhilePaused is null ? null : () => RunPaused(vm),
            Digest = Digest,
            Progress = progress,
        }, stop));
    }

    private void RunPaused(object vm)
    {
        foreach (var output in WhilePaused!.InvokeWithContext(null, [new PSVariable("_", vm)], vm)) WriteObject(output);
    }
}
