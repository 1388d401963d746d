using System.Management.Automation;
using GuestMemory.Core.Userfault;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Add-UffdImage: has a handler that runs serve one more image.</summary>
[Cmdlet(VerbsCommon.Add, "UffdImage", SupportsShouldProcess = true)]
[OutputType(typeof(UffdImage))]
public sealed class AddUffdImageCommand : GuestMemoryCmdlet
{
    /// <summary>What the image is called.</summary>
    [Parameter(Mandatory = true, Position = 0)]
    [ValidateNotNullOrEmpty]
    public string Name { get; set; } = "";

    /// <summary>The memory image.</summary>
    [Parameter(Mandatory = true, Position = 1)]
    [Alias("Path", "PSPath")]
    [ValidateNotNullOrEmpty]
    public string MemoryPath { get; set; } = "";

    /// <summary>Where VMMs connect; NAME.sock beside the handler's first socket unless given.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? SocketPath { get; set; }

    /// <summary>Sparse files with the changes of later snapshots, the oldest first.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string[] Layer { get; set; } = [];

    /// <summary>Writes which pages of the image are touched first to this file.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? RecordPath { get; set; }

    /// <summary>Fills the pages of such a file first.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? ReplayPath { get; set; }

    /// <summary>The handler.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true)]
    [ValidateNotNull]
    public UffdHandler Handler { get; set; } = null!;

    /// <summary>Emits the image.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord() => Attempt(Add, Name);

    private void Add()
    {
        var image = new UffdImageOptions
        {
            Name = Name,
            SocketPath = SocketPath is not null ? ResolvePath(SocketPath) : Path.Combine(Path.GetDirectoryName(Handler.Images[0].SocketPath)!, Name + ".sock"),
            MemoryPath = ResolvePath(MemoryPath),
            LayerPaths = [.. Layer.Select(ResolvePath)],
            RecordPath = RecordPath is null ? null : ResolvePath(RecordPath),
            ReplayPath = ReplayPath is null ? null : ResolvePath(ReplayPath),
        };
        if (!ShouldProcess(image.SocketPath, $"Serve page faults from {image.MemoryPath} by the handler at {Handler}")) return;
        var added = Handler.AddImage(image, StopToken);
        if (PassThru) WriteObject(added);
    }
}
