using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Images;
using GuestMemory.Core.Store;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Save-GuestMemoryImage: an image of a store to a raw file.</summary>
[Cmdlet(VerbsData.Save, "GuestMemoryImage", SupportsShouldProcess = true)]
[OutputType(typeof(ImageInfo))]
public sealed class SaveGuestMemoryImageCommand : StoredImageCmdlet
{
    /// <summary>The file.</summary>
    [Parameter(Mandatory = true, Position = 1, ValueFromPipelineByPropertyName = true)]
    [ValidateNotNullOrEmpty]
    public string Path { get; set; } = "";

    /// <summary>Files with public keys in PEM, of which one must have signed the image.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string[] TrustedKey { get; set; } = [];

    /// <summary>Replaces a file that is there.</summary>
    [Parameter]
    public SwitchParameter Force { get; set; }

    /// <summary>Emits what was written.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    private protected override void Process(ImageStore store, StoreLocation location)
    {
        var path = ResolvePath(Path);
        var manifest = Open(store, location, TrustedKey);
        if (!ShouldProcess(path, $"Save {Formatting.Size(manifest.Size)} of {location}")) return;
        var bar = new ProgressBar(this, $"Saving {location} to {path}", manifest.Size);
        var info = StoreWork.Wait(bar, progress => store.SaveAsync(manifest, path, Force, progress, StopToken));
        if (PassThru) WriteObject(info);
    }
}
