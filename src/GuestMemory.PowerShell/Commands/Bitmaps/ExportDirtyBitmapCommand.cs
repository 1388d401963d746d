using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Images;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Export-DirtyBitmap: a dirty bitmap to a file.</summary>
[Cmdlet(VerbsData.Export, "DirtyBitmap", SupportsShouldProcess = true)]
[OutputType(typeof(DirtyBitmap))]
public sealed class ExportDirtyBitmapCommand : GuestMemoryCmdlet
{
    private bool _written;

    /// <summary>The file.</summary>
    [Parameter(Mandatory = true, Position = 0)]
    [ValidateNotNullOrEmpty]
    public string Path { get; set; } = "";

    /// <summary>The bitmap.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true)]
    [ValidateNotNull]
    public DirtyBitmap Bitmap { get; set; } = null!;

    /// <summary>Replaces a file that is there.</summary>
    [Parameter]
    public SwitchParameter Force { get; set; }

    /// <summary>Emits the bitmap.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord() => Attempt(Export, Bitmap);

    private void Export()
    {
        if (_written) throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "More than one bitmap came through the pipeline; each needs a file of its own. Export them one by one.");
        var path = ResolvePath(Path);
        if (!ShouldProcess(path, $"Export the dirty bitmap of {Formatting.Size(Bitmap.ByteSize)} at {Formatting.Hex(Bitmap.StartAddress)}")) return;
        DirtyBitmapFile.Write(Bitmap, path, Force);
        _written = true;
        if (PassThru) WriteObject(Bitmap);
    }
}
