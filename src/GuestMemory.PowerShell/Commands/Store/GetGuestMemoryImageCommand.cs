using System.Management.Automation;
using GuestMemory.Core.Store;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-GuestMemoryImage: the images of a store.</summary>
[Cmdlet(VerbsCommon.Get, "GuestMemoryImage")]
[OutputType(typeof(StoredImage))]
public sealed class GetGuestMemoryImageCommand : GuestMemoryCmdlet
{
    /// <summary>The store: a directory.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true)]
    [ValidateNotNullOrEmpty]
    public string Store { get; set; } = "";

    /// <summary>The names of the images; wildcards are allowed.</summary>
    [Parameter(Position = 1)]
    [SupportsWildcards]
    [ValidateNotNullOrEmpty]
    public string[] Name { get; set; } = ["*"];

    /// <summary>Emits the earlier generations, too.</summary>
    [Parameter]
    public SwitchParameter AllGenerations { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord() => Attempt(List, Store);

    private void List()
    {
        using var store = ImageStore.Open(Store.Contains("://", StringComparison.Ordinal) ? Store : ResolvePath(Store));
        StoreWork.RequireStore(store.Location);
        foreach (var name in Name)
        {
            var pattern = WildcardPattern.ContainsWildcardCharacters(name) ? WildcardPattern.Get(name, WildcardOptions.None) : null;
            var any = false;
            var damaged = new System.Collections.Concurrent.ConcurrentQueue<Core.GuestMemoryException>();
            var images = store.ListAsync(pattern is null ? name : null, AllGenerations, damaged.Enqueue, StopToken).GetAsyncEnumerator(StopToken);
            try
            {
                while (images.MoveNextAsync().AsTask().GetAwaiter().GetResult())
                {
                    if (pattern?.IsMatch(images.Current.Name) == false) continue;
                    any = true;
                    WriteObject(images.Current);
                }
            }
            finally
            {
                images.DisposeAsync().AsTask().GetAwaiter().GetResult();
            }

            while (damaged.TryDequeue(out var exception))
            {
                any = true;
                WriteError(exception, store.Location);
            }

            if (!any && pattern is null) WriteError(new Core.GuestMemoryException(Core.GuestMemoryError.ImageNotFound, $"The store {store.Location} has no image '{name}'."), name);
        }
    }
}
