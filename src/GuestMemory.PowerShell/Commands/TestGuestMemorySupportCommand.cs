using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Test-GuestMemorySupport: what this host can do.</summary>
[Cmdlet(VerbsDiagnostic.Test, "GuestMemorySupport")]
[OutputType(typeof(HostFeature))]
public sealed class TestGuestMemorySupportCommand : GuestMemoryCmdlet
{
    /// <summary>Names of features, with wildcards.</summary>
    [Parameter(Position = 0)]
    [ArgumentCompleter(typeof(FeatureCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Feature { get; set; } = ["*"];

    /// <inheritdoc/>
    protected override void EndProcessing()
    {
        var patterns = Feature.Select(name => WildcardPattern.Get(name, WildcardOptions.IgnoreCase)).ToArray();
        foreach (var feature in HostSupport.Probe())
        {
            if (Array.Exists(patterns, pattern => pattern.IsMatch(feature.Feature))) WriteObject(feature);
        }
    }
}
