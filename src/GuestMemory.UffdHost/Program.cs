using System.Runtime.InteropServices;
using System.Text.Json;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>
/// The page-fault handler as a program: "GuestMemory.UffdHost --socket-path PATH --memory-path PATH [...]" serves in the foreground,
/// for a service manager; with --detach it leaves the terminal, says on standard output what became of it, and writes a log.
/// </summary>
internal static class Program
{
    /// <summary>What makes this program a worker.</summary>
    public const string WorkerArgument = "worker";

    private const string DetachArgument = "--detach";

    private static int Main(string[] arguments)
    {
        if (arguments is [WorkerArgument]) return Worker.Run();
        var isDetached = arguments.Contains(DetachArgument, StringComparer.Ordinal);
        try
        {
            return Supervise(UffdArguments.Parse([.. arguments.Where(argument => argument != DetachArgument)]), isDetached);
        }
        catch (GuestMemoryException exception)
        {
            if (isDetached) Console.Out.WriteLine(JsonSerializer.Serialize(new UffdControlReply { ErrorId = exception.Error.ToString(), Message = exception.Message }, UffdControlJson.Default.UffdControlReply));
            else Console.Error.WriteLine($"{exception.Error}: {exception.Message}");
            return 1;
        }
    }

    private static int Supervise(UffdHandlerOptions options, bool isDetached)
    {
        var systemd = new Systemd();
        using var supervisor = new Supervisor(options, systemd);
        // From here on whoever ends this process leaves nothing behind.
        using var terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, Stop);
        using var interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, Stop);
        using var hangUp = PosixSignalRegistration.Create(PosixSignal.SIGHUP, static context => context.Cancel = true);
        var controlPath = UffdRuntimeFolder.SocketOf(UffdRuntimeFolder.Make(), Environment.ProcessId);
        var log = UffdRuntimeFolder.LogOf(controlPath);
        if (isDetached)
        {
            OwnSession.Begin();
            OwnSession.RedirectErrors(log);
        }

        try
        {
            supervisor.Start(controlPath);
        }
        catch when (isDetached)
        {
            UffdRuntimeFolder.Remove(log);
            throw;
        }

        if (isDetached)
        {
            Console.Out.WriteLine(JsonSerializer.Serialize(new UffdControlReply { ControlPath = controlPath, Handler = supervisor.Status() }, UffdControlJson.Default.UffdControlReply));
            OwnSession.RedirectOthers();
            UffdDebug.WhenStarted();
        }

        var code = supervisor.Run();
        // Who failed leaves behind why.
        if (isDetached && code == 0) UffdRuntimeFolder.Remove(log);
        return code;

        void Stop(PosixSignalContext context)
        {
            context.Cancel = true;
            supervisor.Stop();
        }
    }
}
