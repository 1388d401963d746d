using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Images;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Import-DirtyBitmap: the dirty bitmaps in files.</summary>
[Cmdlet(VerbsData.Import, "DirtyBitmap")]
[OutputType(typeof(DirtyBitmap))]
public sealed class ImportDirtyBitmapCommand : GuestMemoryCmdlet
{
    /// <summary>The files.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ValueFromPipelineByPropertyName = true)]
    [Alias("FullName")]
    [ValidateNotNullOrEmpty]
    public string[] Path { get; set; } = [];

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var path in Path) Attempt(() => WriteObject(DirtyBitmapFile.Read(ResolvePath(path))), path);
    }
}
