using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Xen;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-XenDomain: the domains of this Xen host.</summary>
[Cmdlet(VerbsCommon.Get, "XenDomain", DefaultParameterSetName = "Name")]
[OutputType(typeof(XenDomain))]
public sealed class GetXenDomainCommand : GuestMemoryCmdlet
{
    /// <summary>Names, with wildcards.</summary>
    [Parameter(Position = 0, ValueFromPipeline = true, ParameterSetName = "Name")]
    [ArgumentCompleter(typeof(XenDomainNameCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Name { get; set; } = ["*"];

    /// <summary>Numbers.</summary>
    [Parameter(Mandatory = true, ParameterSetName = "Id", ValueFromPipelineByPropertyName = true)]
    [ArgumentCompleter(typeof(XenDomainIdCompleter))]
    [Alias("DomainId")]
    public uint[] Id { get; set; } = [];

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        IReadOnlyList<XenDomain> all = [];
        if (!Attempt(() => all = XenDomain.GetAll(), null)) return;
        foreach (var id in Id) Attempt(() => WriteObject(ById(all, id)), id);
        if (ParameterSetName == "Id") return;
        foreach (var name in Name) Attempt(() => WriteObject(ByName(all, name), enumerateCollection: true), name);
    }

    private static XenDomain ById(IReadOnlyList<XenDomain> all, uint id) =>
        all.FirstOrDefault(domain => domain.Id == id) ?? throw new GuestMemoryException(GuestMemoryError.DomainNotFound, $"There is no domain {id} on this host.");

    private static XenDomain[] ByName(IReadOnlyList<XenDomain> all, string name)
    {
        var pattern = WildcardPattern.Get(name, WildcardOptions.IgnoreCase);
        XenDomain[] found = [.. all.Where(domain => pattern.IsMatch(domain.Name))];
        if (found.Length > 0 || WildcardPattern.ContainsWildcardCharacters(name)) return found;
        throw new GuestMemoryException(GuestMemoryError.DomainNotFound, all.Any(static domain => domain.Name.Length > 0)
            ? $"There is no domain '{name}' on this host."
            : $"There is no domain '{name}': xenstored tells the name of none. Give the number of the domain.");
    }
}
