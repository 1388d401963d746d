using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell.Commands;

/// <summary>New-VmMemoryRequest: a request about a VM's memory, to be executed later, or elsewhere.</summary>
[Cmdlet(VerbsCommon.New, "VmMemoryRequest")]
[OutputType(typeof(VmMemoryRequest), typeof(string))]
public sealed class NewVmMemoryRequestCommand : VmMemoryRequestCmdlet
{
    /// <summary>Emits the wire's JSON instead.</summary>
    [Parameter]
    public SwitchParameter AsJson { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord() => Attempt(() =>
    {
        var opened = new List<IDisposable>();
        try
        {
            var request = MakeRequest(opened);
            // What was opened goes with the request.
            if (!AsJson) opened.Clear();
            WriteObject(AsJson ? request.ToJson([]) : request);
        }
        finally
        {
            foreach (var file in opened) file.Dispose();
        }
    }, null);
}
