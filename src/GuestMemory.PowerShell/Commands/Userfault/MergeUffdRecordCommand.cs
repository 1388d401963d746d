using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Merge-UffdRecord: one record of touched pages out of several.</summary>
[Cmdlet(VerbsData.Merge, "UffdRecord", SupportsShouldProcess = true)]
[OutputType(typeof(UffdRecord))]
public sealed class MergeUffdRecordCommand : GuestMemoryCmdlet
{
    private readonly List<string> _paths = [];
    private bool _failed;

    /// <summary>The records, with wildcards.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ValueFromPipelineByPropertyName = true)]
    [Alias("FullName")]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Path { get; set; } = [];

    /// <summary>The file for the result.</summary>
    [Parameter(Mandatory = true, Position = 1)]
    [ValidateNotNullOrEmpty]
    public string OutFile { get; set; } = "";

    /// <summary>Takes only the pages that stand in every record.</summary>
    [Parameter]
    public SwitchParameter CommonOnly { get; set; }

    /// <summary>The image, whose pages are copied into the result.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string? MemoryPath { get; set; }

    /// <summary>The layers of the image, the oldest first.</summary>
    [Parameter]
    [ValidateNotNullOrEmpty]
    public string[] Layer { get; set; } = [];

    /// <summary>Replaces a file that is there.</summary>
    [Parameter]
    public SwitchParameter Force { get; set; }

    /// <summary>Emits what was written.</summary>
    [Parameter]
    public SwitchParameter PassThru { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var path in Path) _failed |= !Attempt(() => _paths.AddRange(Find(path)), path);
    }

    /// <inheritdoc/>
    protected override void EndProcessing()
    {
        // A result without one of the records that were named would be another.
        if (_failed) return;
        Attempt(() =>
        {
            var destination = ResolvePath(OutFile);
            if (MemoryPath is null && Layer.Length > 0)
                throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "Layers are those of an image, whose path is missing (-MemoryPath).");
            if (!ShouldProcess(destination, $"Merge {_paths.Count} records of touched pages")) return;
            var record = MemoryPath is null
                ? UffdRecord.Merge(_paths, destination, CommonOnly, Force)
                : UffdRecord.MergeWithPages(_paths, destination, ResolvePath(MemoryPath), [.. Layer.Select(ResolvePath)], CommonOnly, Force, StopToken);
            if (PassThru) WriteObject(record);
        }, OutFile);
    }

    private IEnumerable<string> Find(string path)
    {
        var literal = ResolvePath(path);
        if (File.Exists(literal) || !WildcardPattern.ContainsWildcardCharacters(path)) return [literal];
        try
        {
            return SessionState.Path.GetResolvedProviderPathFromPSPath(path, out _) is { Count: > 0 } found ? found : throw NotFound(path, null);
        }
        catch (ItemNotFoundException exception)
        {
            throw NotFound(path, exception);
        }
    }

    private static GuestMemoryException NotFound(string path, Exception? exception) => new(GuestMemoryError.RecordNotFound, $"No file is at {path}.", exception);
}
