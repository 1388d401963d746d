using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-UffdHandler: the handlers of this user, with live figures.</summary>
[Cmdlet(VerbsCommon.Get, "UffdHandler", DefaultParameterSetName = "Socket")]
[OutputType(typeof(UffdHandler), typeof(UffdFigures), typeof(string))]
public sealed class GetUffdHandlerCommand : GuestMemoryCmdlet
{
    /// <summary>Socket paths, with wildcards.</summary>
    [Parameter(Position = 0, ParameterSetName = "Socket")]
    [ArgumentCompleter(typeof(HandlerSocketCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] SocketPath { get; set; } = [];

    /// <summary>Numbers of handlers.</summary>
    [Parameter(Mandatory = true, ParameterSetName = "Id")]
    [ArgumentCompleter(typeof(HandlerIdCompleter))]
    public int[] Id { get; set; } = [];

    /// <summary>Emits everything that was counted, as it is now.</summary>
    [Parameter]
    public SwitchParameter Figures { get; set; }

    /// <summary>Emits the figures as a line of JSON for each handler.</summary>
    [Parameter]
    public SwitchParameter AsJson { get; set; }

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        if (SocketPath.Length == 0 && Id.Length == 0) Write(Session.Handlers);
        foreach (var path in SocketPath) Attempt(() => Write(HandlerLookup.BySocket(path, ResolvePath)), path);
        foreach (var id in Id)
        {
            Attempt(() => Write([Session.Handlers.FirstOrDefault(handler => handler.Id == id)
                ?? throw new GuestMemoryException(GuestMemoryError.HandlerNotFound, $"There is no handler {id} of this user. 'Get-UffdHandler' lists them.")]), id);
        }
    }

    private void Write(IEnumerable<UffdHandler> handlers)
    {
        foreach (var handler in handlers)
        {
            if (AsJson) WriteObject(UffdFiguresText.ToJson(handler.GetFigures()));
            else if (Figures) WriteObject(handler.GetFigures());
            else WriteObject(handler);
        }
    }
}
