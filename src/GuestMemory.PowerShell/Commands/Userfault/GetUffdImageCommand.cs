using System.Management.Automation;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-UffdImage: the images that handlers serve.</summary>
[Cmdlet(VerbsCommon.Get, "UffdImage")]
[OutputType(typeof(UffdImage))]
public sealed class GetUffdImageCommand : GuestMemoryCmdlet
{
    /// <summary>Names of images, with wildcards.</summary>
    [Parameter(Position = 0)]
    [ArgumentCompleter(typeof(UffdImageNameCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Name { get; set; } = [];

    /// <summary>The handlers; all of this user unless given.</summary>
    [Parameter(ValueFromPipeline = true)]
    [ValidateNotNull]
    public UffdHandler[] Handler { get; set; } = [];

    /// <inheritdoc/>
    protected override void ProcessRecord() => Attempt(() =>
    {
        var images = UffdImageLookup.All(Handler);
        if (Name.Length == 0) WriteObject(images, enumerateCollection: true);
        foreach (var name in Name) Attempt(() => WriteObject(UffdImageLookup.ByName(images, name), enumerateCollection: true), name);
    }, Handler);
}
