using System.Management.Automation;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Remove-UffdImage: takes images away from handlers that run.</summary>
[Cmdlet(VerbsCommon.Remove, "UffdImage", SupportsShouldProcess = true, DefaultParameterSetName = NameSet)]
[OutputType(typeof(void))]
public sealed class RemoveUffdImageCommand : GuestMemoryCmdlet
{
    private const string NameSet = "Name";
    private const string ImageSet = "Image";

    /// <summary>Names of images, with wildcards.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = NameSet)]
    [ArgumentCompleter(typeof(UffdImageNameCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Name { get; set; } = [];

    /// <summary>The handlers of the images; all of this user unless given.</summary>
    [Parameter(ParameterSetName = NameSet)]
    [ValidateNotNull]
    public UffdHandler[] Handler { get; set; } = [];

    /// <summary>The images.</summary>
    [Parameter(Mandatory = true, ValueFromPipeline = true, ParameterSetName = ImageSet)]
    [ValidateNotNull]
    public UffdImage[] Image { get; set; } = [];

    /// <summary>Gives up the VMs that are served from them, each as its OnError says.</summary>
    [Parameter]
    public SwitchParameter Force { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var image in Image) Attempt(() => Remove(image), image);
        foreach (var name in Name)
        {
            Attempt(() =>
            {
                foreach (var image in UffdImageLookup.ByName(UffdImageLookup.All(Handler), name)) Attempt(() => Remove(image), image);
            }, name);
        }
    }

    private void Remove(UffdImage image)
    {
        var what = Force && image.ConnectionCount > 0 ? $"Remove the image, and give up the {image.ConnectionCount} VM(s) that are served from it" : "Remove the image";
        if (ShouldProcess($"{image.Name} ({image.MemoryPath}, handler at {image.GetHandler()})", what)) image.Remove(Force, StopToken);
    }
}
