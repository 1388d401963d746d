using System.Management.Automation;
using GuestMemory.Core.Store;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>A cmdlet that works on images of a store.</summary>
public abstract class StoredImageCmdlet : GuestMemoryCmdlet
{
    /// <summary>The images: the store, '/', the name, and '@' with a generation.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ValueFromPipelineByPropertyName = true)]
    [Alias("Location")]
    [ArgumentCompleter(typeof(StoredImageCompleter))]
    [ValidateNotNullOrEmpty]
    public virtual string[] Image { get; set; } = [];

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var image in Image)
        {
            Attempt(() =>
            {
                var location = StoreWork.Locate(image, ResolvePath);
                using var store = ImageStore.Open(location.Store);
                Process(store, location);
            }, image);
        }
    }

    /// <summary>Does the cmdlet's work on an image.</summary>
    private protected abstract void Process(ImageStore store, StoreLocation location);

    /// <summary>Opens an image, which one of the keys must have signed where any are given.</summary>
    private protected ImageManifest Open(ImageStore store, StoreLocation location, string[] trustedKeys) => StoreWork.Open(store, location, trustedKeys, ResolvePath, StopToken);
}
