using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Get-UffdHandler: the handlers of this shell, with live figures.</summary>
[Cmdlet(VerbsCommon.Get, "UffdHandler", DefaultParameterSetName = "Socket")]
[OutputType(typeof(UffdHandler))]
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

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        if (SocketPath.Length == 0 && Id.Length == 0) WriteObject(Session.Handlers, enumerateCollection: true);
        foreach (var path in SocketPath) Attempt(() => WriteObject(HandlerLookup.BySocket(path, ResolvePath), enumerateCollection: true), path);
        foreach (var id in Id)
        {
            Attempt(() => WriteObject(Session.Handlers.FirstOrDefault(handler => handler.Id == id)
                ?? throw new GuestMemoryException(GuestMemoryError.HandlerNotFound, $"There is no handler {id} in this shell. 'Get-UffdHandler' lists them.")), id);
        }
    }
}
