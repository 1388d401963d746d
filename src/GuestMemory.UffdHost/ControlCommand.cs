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
        using var client = Connect(process)
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

    /// <summary>The handler of a process. The socket has the name of the one before it where that folder is another user's.</summary>
    private static UffdControlClient? Connect(string process)
    {
        foreach (var path in UffdRuntimeFolder.Sockets().OrderByDescending(path => IsNumber(UffdRuntimeFolder.ProcessOf(path))))
        {
            var client = UffdControlClient.TryConnect(path, out _);
            if (client is null) continue;
            if (IsNumber(client.Ask(new UffdControlRequest { Request = UffdControlRequest.Status }, CancellationToken.None)?.ProcessId)) return client;
            client.Dispose();
        }

        return null;

        bool IsNumber(int? number) => number?.ToString(CultureInfo.InvariantCulture) == process;
    }
}
