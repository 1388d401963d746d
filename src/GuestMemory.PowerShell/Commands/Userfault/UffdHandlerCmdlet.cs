using System.Management.Automation;
using GuestMemory.Core.Userfault;
using GuestMemory.PowerShell.Binding;

namespace GuestMemory.PowerShell.Commands;

/// <summary>A cmdlet about page-fault handlers: from the pipeline, or by their socket paths. An error of one does not keep it from the others.</summary>
public abstract class UffdHandlerCmdlet : GuestMemoryCmdlet
{
    /// <summary>The parameter set of <see cref="Handler"/>.</summary>
    protected const string HandlerSet = "Handler";

    private const string SocketSet = "Socket";

    /// <summary>The handlers.</summary>
    [Parameter(Mandatory = true, Position = 0, ValueFromPipeline = true, ParameterSetName = HandlerSet)]
    [ArgumentCompleter(typeof(PositionCompleter<HandlerSocketCompleter>))]
    [ValidateNotNull]
    public UffdHandler[] Handler { get; set; } = [];

    /// <summary>Socket paths, with wildcards.</summary>
    [Parameter(Mandatory = true, Position = 0, ParameterSetName = SocketSet)]
    [ArgumentCompleter(typeof(HandlerSocketCompleter))]
    [ValidateNotNullOrEmpty]
    [SupportsWildcards]
    public string[] SocketPath { get; set; } = [];

    /// <inheritdoc/>
    protected override void ProcessRecord()
    {
        foreach (var handler in Handler) Attempt(() => Process(handler), handler);
        foreach (var path in SocketPath)
        {
            Attempt(() =>
            {
                foreach (var handler in HandlerLookup.BySocket(path, ResolvePath)) Attempt(() => Process(handler), handler);
            }, path);
        }
    }

    /// <summary>Does what the cmdlet is for to one handler.</summary>
    protected abstract void Process(UffdHandler handler);
}
