using System.Globalization;
using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Linux;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-GuestProcess: the processes of a Linux guest, as its memory has them.</summary>
[Cmdlet(VerbsCommon.Get, "GuestProcess", DefaultParameterSetName = ByName)]
[OutputType(typeof(GuestProcess))]
public sealed class GetGuestProcessCommand : VmMemoryCmdlet
{
    private const string ByName = "Name";
    private const string ById = "Id";

    /// <summary>The names of processes, which may have wildcards.</summary>
    [Parameter(Position = 0, ParameterSetName = ByName)]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] Name { get; set; } = ["*"];

    /// <summary>The numbers of processes.</summary>
    [Parameter(Mandatory = true, ParameterSetName = ById)]
    [Alias("Id")]
    [ValidateNotNullOrEmpty]
    public int[] ProcessId { get; set; } = [];

    private protected override void ProcessOther(IGuestMemorySource source)
    {
        if (source is GuestKernel kernel) Held(GuestMemoryMmap.FromRegions(kernel.GetRegions()), () => Write(kernel));
        else base.ProcessOther(source);
    }

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory) => Write(KernelSearch.Find(this, memory, StopToken));

    private void Write(GuestKernel kernel)
    {
        var names = ParameterSetName == ByName ? Name : [.. ProcessId.Select(id => id.ToString(CultureInfo.InvariantCulture))];
        var patterns = Array.ConvertAll(names, static name => WildcardPattern.Get(name, WildcardOptions.IgnoreCase | WildcardOptions.CultureInvariant));
        var found = new bool[names.Length];
        foreach (var process in kernel.GetProcesses(WriteWarning, StopToken))
        {
            var matches = false;
            for (var i = 0; i < names.Length; i++)
            {
                if (ParameterSetName == ByName ? patterns[i].IsMatch(process.Name) : ProcessId[i] == process.ProcessId) matches = found[i] = true;
            }

            if (matches) WriteObject(process);
        }

        for (var i = 0; i < names.Length; i++)
        {
            if (!found[i] && (ParameterSetName == ById || !WildcardPattern.ContainsWildcardCharacters(names[i])))
                WriteError(new GuestMemoryException(GuestMemoryError.GuestProcessNotFound, $"The guest ({kernel}) has no process {(ParameterSetName == ById ? names[i] : $"'{names[i]}'")}."), names[i]);
        }
    }
}
