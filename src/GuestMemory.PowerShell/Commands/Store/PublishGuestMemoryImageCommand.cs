using System.Management.Automation;
using System.Security.Cryptography;
using GuestMemory.Core;
using GuestMemory.Core.Images;
using GuestMemory.Core.Store;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Publish-GuestMemoryImage: memory, or an image file, to a store.</summary>
[Cmdlet(VerbsData.Publish, "GuestMemoryImage", SupportsShouldProcess = true)]
[OutputType(typeof(StoredImage))]
public sealed class PublishGuestMemoryImageCommand : VmMemoryCmdlet
{
    private bool _published;

    // A parameter has one position in every set: alone, beside memory from the pipeline, the first argument is the destination.

    /// <summary>An image file, of any format that can be imported.</summary>
    [Parameter(Position = 0)]
    [ArgumentCompleter(typeof(StoredImageCompleter))]
    [ValidateNotNullOrEmpty]
    public string? Path { get; set; }

    /// <summary>Where to: the store, '/', and the image's name.</summary>
    [Parameter(Position = 1)]
    [ArgumentCompleter(typeof(StoredImageCompleter))]
    [ValidateNotNullOrEmpty]
    public string? Destination { get; set; }

    /// <summary>Where the memory of an image file belongs that does not say so itself.</summary>
    [Parameter]
    [ArgumentCompleter(typeof(ImageLayoutCompleter))]
    [ImageLayout]
    [ValidateNotNull]
    public ImageLayout? Layout { get; set; }

    /// <summary>The bytes of a chunk.</summary>
    [Parameter]
    [Number]
    public ulong ChunkSize { get; set; } = PublishOptions.DefaultChunkSize;

    /// <summary>How chunks are compressed.</summary>
    [Parameter]
    public ImageCompression Compression { get; set; } = ImageCompression.LZ4;

    /// <summary>The touch record of the image, which travels with it.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? RecordPath { get; set; }

    /// <summary>A file with a private key in PEM, which signs the image.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? SigningKey { get; set; }

    /// <inheritdoc/>
    protected override void BeginProcessing()
    {
        if (Destination is null) (Path, Destination) = (null, Path);
        if (Destination is null)
            ThrowTerminatingError(ToRecord(new GuestMemoryException(GuestMemoryError.ValueNotSupported, "Say where to publish the image: the store, '/', and the image's name."), null));
    }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        if (Path is null || (Memory.Length == 0 && UffdVm is null)) base.ProcessRecord();
        else WriteError(new GuestMemoryException(GuestMemoryError.ValueNotSupported, "Give an image file or memory, not both."), Path);
    }

    /// <inheritdoc/>
    protected override void EndProcessing()
    {
        if (Path is null)
        {
            if (Layout is null) base.EndProcessing();
            else WriteError(new GuestMemoryException(GuestMemoryError.ValueNotSupported, "-Layout is of an image file; memory has its addresses."), Layout);
        }
        else if (Memory.Length == 0 && UffdVm is null)
        {
            Attempt(() => PublishFile(ResolvePath(Path)), Path);
        }
    }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        if (_published)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "More than one address space came through the pipeline; each is an image of its own. Publish them one by one.");
        var location = StoreWork.Locate(Destination!, ResolvePath);
        if (location.Generation is not null)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"An image becomes the next generation of its name; {location} names one. Leave '@{location.Generation}' away.");
        if (!ShouldProcess(location.ToString(), $"Publish {Formatting.Size(memory.Size)} of guest memory")) return;
        using var key = SigningKey is null ? null : StoreWork.ReadKey(ResolvePath(SigningKey), isPrivate: true);
        using var store = ImageStore.Open(location.Store);
        var options = new PublishOptions
        {
            ChunkSize = (int)Math.Min(ChunkSize, int.MaxValue),
            Compression = Compression,
            SigningKey = key,
            Record = RecordPath is null ? default(ReadOnlyMemory<byte>) : ReadRecord(ResolvePath(RecordPath)),
        };
        var bar = new ProgressBar(this, $"Publishing {location}", memory.Size);
        var image = StoreWork.Wait(bar, progress => store.PublishAsync(memory, location.Name, options with { Progress = progress }, StopToken));
        _published = true;
        WriteObject(image);
    }

    private void PublishFile(string path)
    {
        var memory = MemoryImage.Open(path, new ImageOpenOptions { Layout = Layout, Warning = WriteWarning }, StopToken);
        try
        {
            Process(memory);
        }
        finally
        {
            foreach (var region in memory.Regions) region.Dispose();
        }
    }

    private static byte[] ReadRecord(string path)
    {
        if (!File.Exists(path)) throw new GuestMemoryException(GuestMemoryError.RecordNotFound, $"There is no record at {path}.");
        return File.ReadAllBytes(path);
    }
}
