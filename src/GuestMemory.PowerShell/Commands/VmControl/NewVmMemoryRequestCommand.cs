using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell.Commands;

/// <summary>New-VmMemoryRequest: a request about a VM's memory, to be executed later, or elsewhere.</summary>
[Cmdlet(VerbsCommon.New, "VmMemoryRequest")]
[OutputType(typeof(RequestDictionary), typeof(string))]
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
            if (AsJson)
            {
                WriteObject(request.ToJson([]));
                return;
            }

            var emitted = new RequestDictionary(request);
            // The files that were opened stay open with the request.
            opened.Clear();
            WriteObject(emitted);
        }
        finally
        {
            foreach (var file in opened) file.Dispose();
        }
    }, null);
}
