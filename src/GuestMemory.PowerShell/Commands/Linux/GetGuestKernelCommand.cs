using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Linux;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-GuestKernel: the Linux kernel in a guest's memory, or its symbols.</summary>
[Cmdlet(VerbsCommon.Get, "GuestKernel", DefaultParameterSetName = Kernel)]
[OutputType(typeof(GuestKernel), ParameterSetName = [Kernel])]
[OutputType(typeof(GuestSymbol), ParameterSetName = [Symbols])]
public sealed class GetGuestKernelCommand : VmMemoryCmdlet
{
    private const string Kernel = "Kernel";
    private const string Symbols = "Symbol";

    /// <summary>The names of symbols, which may have wildcards.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = Symbols)]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Symbol { get; set; } = [];

    private protected override void ProcessOther(IGuestMemorySource source)
    {
        if (source is GuestKernel kernel) Held(GuestMemoryMmap.FromRegions(kernel.GetRegions()), () => Write(kernel));
        else base.ProcessOther(source);
    }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory) => Write(KernelSearch.Find(this, memory, StopToken));

    private void Write(GuestKernel kernel)
    {
        if (ParameterSetName == Kernel)
        {
            WriteObject(kernel);
            return;
        }

        // The kernel's names are case-sensitive.
        var names = Symbol.Select(name => (Text: name, Pattern: WildcardPattern.Get(name, WildcardOptions.CultureInvariant))).ToArray();
        var found = new bool[names.Length];
        foreach (var symbol in kernel.GetSymbols())
        {
            StopToken.ThrowIfCancellationRequested();
            var matches = false;
            for (var i = 0; i < names.Length; i++)
            {
                if (!names[i].Pattern.IsMatch(symbol.Name)) continue;
                matches = found[i] = true;
            }

            if (matches) WriteObject(symbol);
        }

        for (var i = 0; i < names.Length; i++)
        {
            if (!found[i] && !WildcardPattern.ContainsWildcardCharacters(names[i].Text))
                WriteError(new GuestMemoryException(GuestMemoryError.SymbolNotFound, $"{kernel} has no symbol '{names[i].Text}'. Symbols of modules are not among them."), names[i].Text);
        }
    }
}
