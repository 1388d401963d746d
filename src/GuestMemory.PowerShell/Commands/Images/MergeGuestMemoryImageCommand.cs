using System.Management.Automation;
using GuestMemory.Core.Images;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Merge-GuestMemoryImage: diffs into their base image.</summary>
[Cmdlet(VerbsData.Merge, "GuestMemoryImage", SupportsShouldProcess = true)]
[OutputType(typeof(ImageInfo))]
public sealed class MergeGuestMemoryImageCommand : GuestMemoryCmdlet
{
    private readonly List<string> _diffs = [];
    private bool _refused;

    /// <summary>The base image.</summary>
    [Parameter(Mandatory = true, Position = 0)]
    [ValidateNotNullOrEmpty]
    public string Base { get; set; } = "";

    /// <summary>The diffs, the oldest first.</summary>
    [Parameter(Mandatory = true, Position = 1, ValueFromPipeline = true, ValueFromPipelineByPropertyName = true)]
    [Alias("FullName")]
    [ValidateNotNullOrEmpty]
    public string[] Diff { get; set; } = [];

    /// <summary>A new file for the result; the base stays as it is then.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? OutPath { get; set; }

    /// <summary>Replaces a file that is there; writes a base that is being served; takes a diff whose pages cannot be told for sure by its data.</summary>
    [Parameter]
    public SwitchParameter Force { get; set; }

    /// <summary>Emits what was written.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var diff in Diff) _refused |= !Attempt(() => _diffs.Add(ResolvePath(diff)), diff);
    }

    /// <inheritdoc/>
    protected override void EndProcessing()
    {
        // Without one of them the result would be another.
        if (!_refused) Attempt(Merge, Base);
    }

    private void Merge()
    {
        var image = ResolvePath(Base);
        var output = OutPath is null ? null : ResolvePath(OutPath);
        if (!ShouldProcess(output ?? image, $"Merge {string.Join(", ", _diffs)} {(output is null ? "into it" : $"and {image}")}")) return;
        ProgressBar? progress = null;
        var info = ImageMerge.Merge(image, _diffs, output, Force, (done, total) => (progress ??= new ProgressBar(this, $"Merging {_diffs.Count} diff(s) into {output ?? image}", total)).Report(done), StopToken);
        progress?.Complete();
        if (PassThru) WriteObject(info);
    }
}
