using System.Management.Automation;
using GuestMemory.Core.Store;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Test-GuestMemoryImage: reads every chunk of an image of a store, and checks it.</summary>
[Cmdlet(VerbsDiagnostic.Test, "GuestMemoryImage")]
[OutputType(typeof(ImageCheck))]
public sealed class TestGuestMemoryImageCommand : StoredImageCmdlet
{
    /// <summary>Files with public keys in PEM, of which one must have signed the image.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string[] TrustedKey { get; set; } = [];

    private protected override void Process(ImageStore store, StoreLocation location)
    {
        var manifest = Open(store, location, TrustedKey);
        var bar = new ProgressBar(this, $"Checking {location}", (ulong)manifest.UniqueCount * (ulong)manifest.ChunkSize);
        WriteObject(StoreWork.Wait(bar, progress => store.TestAsync(manifest, progress, StopToken)));
    }
}
