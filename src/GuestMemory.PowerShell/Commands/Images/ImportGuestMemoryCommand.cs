using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Images;
using GuestMemory.Core.Store;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Import-GuestMemory: memory images as guest memory, to be read.</summary>
[Cmdlet(VerbsData.Import, "GuestMemory")]
[OutputType(typeof(GuestMemoryMmap))]
public sealed class ImportGuestMemoryCommand : GuestMemoryCmdlet
{
    /// <summary>The image files, or images of a store.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ValueFromPipelineByPropertyName = true)]
    [Alias("FullName", "Location")]
    [ValidateNotNullOrEmpty]
    public string[] Path { get; set; } = [];

    /// <summary>The format, where it is not what the file's first bytes say.</summary>
    [Parameter]
    public ImageFormat Format { get; set; }

    /// <summary>Where the memory belongs, of an image that does not say so itself.</summary>
    [Parameter]
    [ArgumentCompleter(typeof(ImageLayoutCompleter))]
    [ImageLayout]
    [ValidateNotNull]
    public ImageLayout? Layout { get; set; }

    /// <summary>Checks the digest beside the file, and the checksums in it.</summary>
    [Parameter]
    public SwitchParameter Verify { get; set; }

    /// <summary>A name for the region, or what the names of several begin with.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? Name { get; set; }

    /// <summary>Files with public keys in PEM, of which one must have signed an image of a store.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string[] TrustedKey { get; set; } = [];

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var path in Path)
        {
            Attempt(() =>
            {
                if (Name is not null && IsTaken(Name)) throw NameInUse(Name);
                if (StoreWork.FindImage(path, ResolvePath) is { } location) Open(location);
                else Open(ResolvePath(path));
            }, path);
        }
    }

    private void Open(StoreLocation location)
    {
        if (Layout is not null || MyInvocation.BoundParameters.ContainsKey(nameof(Format)))
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"{location} is an image of a store, which has its addresses and its format itself. Leave -Layout and -Format out.");
        // Its regions use it until they are removed; it holds nothing that must be given back.
        var store = ImageStore.Open(location.Store);
        var manifest = StoreWork.Open(store, location, TrustedKey, ResolvePath, StopToken);
        if (Verify)
        {
            var bar = new ProgressBar(this, $"Verifying {location}", (ulong)manifest.UniqueCount * (ulong)manifest.ChunkSize);
            var check = StoreWork.Wait(bar, progress => store.TestAsync(manifest, progress, StopToken));
            if (!check.IsWhole) throw new GuestMemoryException(GuestMemoryError.InvalidImage, $"{check.Location} is damaged: {check.Errors.Count} of {check.ChunkCount} chunks. {check.Errors[0]}");
        }

        Add(store.OpenMemory(manifest, Name ?? FreeName(location.Name)));
    }

    private void Open(string path)
    {
        if (TrustedKey.Length > 0)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"-TrustedKey is of an image of a store, and {path} is a file.");
        ProgressBar? progress = null;
        ulong of = 0;
        var memory = MemoryImage.Open(path, new ImageOpenOptions
        {
            Format = MyInvocation.BoundParameters.ContainsKey(nameof(Format)) ? Format : null,
            Layout = Layout,
            Verify = Verify,
            Name = Name ?? FreeName(System.IO.Path.GetFileNameWithoutExtension(path)),
            Progress = (done, total) =>
            {
                // The digest is of the file; the checksums are of the memory.
                if (progress is null || total != of)
                {
                    progress?.Complete();
                    (progress, of) = (new ProgressBar(this, $"Verifying {path}", total), total);
                }

                progress.Report(done);
            },
            Warning = WriteWarning,
        }, StopToken);
        progress?.Complete();
        Add(memory);
    }

    private void Add(GuestMemoryMmap memory)
    {
        var added = 0;
        while (added < memory.Regions.Count && Session.TryAdd(memory.Regions[added])) added++;
        if (added < memory.Regions.Count)
        {
            for (var i = 0; i < memory.Regions.Count; i++)
            {
                if (i < added) Session.Remove(memory.Regions[i]);
                memory.Regions[i].Dispose();
            }

            throw NameInUse(memory.Regions[added].Name);
        }

        WriteObject(memory);
    }

    private static string FreeName(string name)
    {
        if (name.Length == 0) name = "image";
        var free = name;
        for (var number = 2; IsTaken(free); number++) free = $"{name}_{number}";
        return free;
    }

    /// <summary>Whether a region has the name, or the first of several would.</summary>
    private static bool IsTaken(string name) => Session.HasRegion(name) || Session.HasRegion($"{name}-0");

    private static GuestMemoryException NameInUse(string name) =>
        new(GuestMemoryError.NameInUse, $"There is a region '{name}' already. Give another -Name, or remove that one: 'Remove-MmapRegion -Name {name}'.");
}
