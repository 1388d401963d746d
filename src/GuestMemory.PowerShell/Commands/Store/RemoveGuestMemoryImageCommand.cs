using System.Management.Automation;
using GuestMemory.Core.Store;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Remove-GuestMemoryImage: images of a store, and the chunks that none has any more.</summary>
[Cmdlet(VerbsCommon.Remove, "GuestMemoryImage", SupportsShouldProcess = true, ConfirmImpact = ConfirmImpact.High, DefaultParameterSetName = ImageSet)]
[OutputType(typeof(CollectionResult))]
public sealed class RemoveGuestMemoryImageCommand : StoredImageCmdlet
{
    private const string ImageSet = "Image";
    private const string StoreSet = "Unused";

    private readonly HashSet<string> _stores = new(StringComparer.Ordinal);

    /// <inheritdoc/>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ValueFromPipelineByPropertyName = true, ParameterSetName = ImageSet)]
    [Alias("Location")]
    [ArgumentCompleter(typeof(StoredImageCompleter))]
    [ValidateNotNullOrEmpty]
    public override string[] Image { get; set; } = [];

    /// <summary>Stores of which only what no image has any more is removed.</summary>
    [Parameter(Mandatory = true, ParameterSetName = StoreSet)]
    [ValidateNotNullOrEmpty]
    public string[] Unused { get; set; } = [];

    /// <summary>Emits what was removed of each store.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void EndProcessing()
    {
        foreach (var store in Unused)
        {
            if (ShouldProcess(store, "Remove the chunks that no image has")) Attempt(() => _stores.Add(store.Contains("://", StringComparison.Ordinal) ? store : ResolvePath(store)), store);
        }

        foreach (var store in _stores) Attempt(() => Collect(store), store);
    }

    private protected override void Process(ImageStore store, StoreLocation location)
    {
        if (!ShouldProcess(location.ToString(), location.Generation is null ? "Remove the image with all its generations" : "Remove the generation of the image")) return;
        store.RemoveAsync(location.Name, location.Generation, StopToken).GetAwaiter().GetResult();
        _stores.Add(location.Store);
    }

    private void Collect(string location)
    {
        StoreWork.RequireStore(location);
        using var store = ImageStore.Open(location);
        var result = store.CollectAsync(StopToken).GetAwaiter().GetResult();
        // What is found now can go now, unless an upload is under way.
        if (result.Waiting > 0 && store.CollectAsync(StopToken).GetAwaiter().GetResult() is var second)
            result = second with { Removed = result.Removed + second.Removed, RemovedSize = result.RemovedSize + second.RemovedSize };
        WriteVerbose($"{location}: {result.Removed} objects ({Formatting.Size(result.RemovedSize)}) were removed, {result.Waiting} ({Formatting.Size(result.WaitingSize)}) wait for uploads that are under way, {result.Kept} ({Formatting.Size(result.KeptSize)}) stay.");
        if (PassThru) WriteObject(result);
    }
}
