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
        var found = new bool[patterns.Length];
        foreach (var feature in HostSupport.Probe())
        {
            var matches = Array.ConvertAll(patterns, pattern => pattern.IsMatch(feature.Feature));
            for (var i = 0; i < matches.Length; i++) found[i] |= matches[i];
            if (Array.Exists(matches, match => match)) WriteObject(feature);
        }

        for (var i = 0; i < found.Length; i++)
        {
            if (!found[i] && !WildcardPattern.ContainsWildcardCharacters(Feature[i]))
                WriteError(new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"There is no feature '{Feature[i]}' to test on this host. 'Test-GuestMemorySupport' lists them."), Feature[i]);
        }
    }
}
