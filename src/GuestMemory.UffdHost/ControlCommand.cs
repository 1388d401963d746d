using System.Globalization;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>
/// Requests to a handler that runs, for the unit file of a service manager: "upgrade PID" has this program take it over (ExecReload=), and
/// "stop PID" ends it for good (ExecStop=).
/// </summary>
internal static class ControlCommand
{
    private static readonly TimeSpan s_upgradeTimeout = TimeSpan.FromSeconds(60);
    private static readonly TimeSpan s_margin = TimeSpan.FromSeconds(30);

    public static bool Knows(string request) => request is UffdControlRequest.Upgrade or UffdControlRequest.Stop;

    /// <summary>Asks the handler of a process and waits for its answer.</summary>
    /// <exception cref="GuestMemoryException">HandlerNotFound; or what the handler answers.</exception>
    public static int Run(string request, string process)
    {
        var path = UffdRuntimeFolder.Sockets().FirstOrDefault(path => UffdRuntimeFolder.ProcessOf(path)?.ToString(CultureInfo.InvariantCulture) == process);
        using var client = (path is null ? null : UffdControlClient.TryConnect(path, out _))
            ?? throw new GuestMemoryException(GuestMemoryError.HandlerNotFound, $"Process {process} is no handler of this user. Its control socket lies in the folder that {UffdRuntimeFolder.Variable} names.");
        if (request == UffdControlRequest.Stop)
        {
            _ = client.Ask(new UffdControlRequest { Request = request }, CancellationToken.None, s_margin);
            return 0;
        }

        var upgrade = new UffdControlRequest { Request = request, Program = Program.CommandLine(), Timeout = (int)s_upgradeTimeout.TotalMilliseconds };
        _ = client.Ask(upgrade, CancellationToken.None, s_upgradeTimeout + s_margin)
            ?? throw new GuestMemoryException(GuestMemoryError.HandlerGone, $"The handler of process {process} has ended.");
        return 0;
    }
}
