using System.Collections;
using System.Runtime.InteropServices;
using System.Text.Json;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>
/// The page-fault handler as a program: "GuestMemory.UffdHost --socket-path PATH --memory-path PATH [...]" serves in the foreground,
/// for a service manager; with --detach it leaves the terminal, says on standard output what became of it, and writes a log.
/// "upgrade PID" and "stop PID" are requests to one that runs (<see cref="ControlCommand"/>).
/// </summary>
internal static class Program
{
    /// <summary>What makes this program a worker.</summary>
    public const string WorkerArgument = "worker";

    /// <summary>What has this program take a handler over from the process that starts it.</summary>
    public const string SuccessorArgument = "--successor";

    public const string DetachArgument = "--detach";

    /// <summary>How this program was started, without its arguments: its path, or that of dotnet and of the library.</summary>
    public static List<string> CommandLine()
    {
        var program = Environment.ProcessPath ?? throw new GuestMemoryException(GuestMemoryError.HandlerStartFailed, "This program does not know its own path.");
        return Path.GetFileName(program) == "dotnet" ? [program, Path.Combine(AppContext.BaseDirectory, "GuestMemory.UffdHost.dll")] : [program];
    }

    /// <summary>The environment of the processes that this one starts.</summary>
    public static string[] Variables()
    {
        // A killed process would leave the runtime's diagnostic socket, and its debugger's pipes, behind.
        Environment.SetEnvironmentVariable(UffdHostProcess.NoDiagnosticSocket, "0");
        Environment.SetEnvironmentVariable(UffdHostProcess.NoDiagnostics, "0");
        return [.. Environment.GetEnvironmentVariables().Cast<DictionaryEntry>().Select(entry => $"{entry.Key}={entry.Value}")];
    }

    private static int Main(string[] arguments)
    {
        if (arguments is [WorkerArgument]) return Worker.Run();
        var isDetached = arguments.Contains(DetachArgument, StringComparer.Ordinal);
        var isSuccessor = arguments.Contains(SuccessorArgument, StringComparer.Ordinal);
        try
        {
            if (arguments is [var request, var process] && ControlCommand.Knows(request)) return ControlCommand.Run(request, process);
            var systemd = new Systemd();
            if (isSuccessor) return Succeed(arguments, systemd, isDetached);
            return Supervise(Options(arguments), systemd, null, isDetached);
        }
        catch (GuestMemoryException exception)
        {
            if (isDetached && !isSuccessor) Console.Out.WriteLine(JsonSerializer.Serialize(new UffdControlReply { ErrorId = exception.Error.ToString(), Message = exception.Message }, UffdControlJson.Default.UffdControlReply));
            else Console.Error.WriteLine($"{exception.Error}: {exception.Message}");
            return 1;
        }
    }

    private static UffdHandlerOptions Options(string[] arguments) => UffdArguments.Parse([.. arguments.Where(static argument => argument is not (DetachArgument or SuccessorArgument))]);

    /// <summary>Takes a handler over. Until it is this process's, nothing of it is put in order here: the process that has it goes on.</summary>
    private static int Succeed(string[] arguments, Systemd systemd, bool isDetached)
    {
        using var predecessor = Predecessor.Meet(systemd);
        try
        {
            return Supervise(Options(arguments), systemd, predecessor, isDetached);
        }
        catch (GuestMemoryException exception)
        {
            predecessor.Refuse(exception);
            throw;
        }
    }

    private static int Supervise(UffdHandlerOptions options, Systemd systemd, Predecessor? predecessor, bool isDetached)
    {
        var supervisor = new Supervisor(options, systemd, predecessor, isDetached);
        // From here on whoever ends this process leaves nothing behind.
        using var terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, Stop);
        using var interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, Stop);
        using var hangUp = PosixSignalRegistration.Create(PosixSignal.SIGHUP, static context => context.Cancel = true);
        // A successor has the folder of its predecessor, which may be another user's.
        var controlPath = predecessor is null ? UffdRuntimeFolder.SocketOf(UffdRuntimeFolder.Make(), Environment.ProcessId) : null;
        var isReported = isDetached && predecessor is null;
        if (isReported)
        {
            OwnSession.Begin();
            OwnSession.RedirectErrors(UffdRuntimeFolder.LogOf(controlPath!));
        }

        // A successor has that of its predecessor.
        Log.IsOwnFile = isDetached;
        try
        {
            supervisor.Start(controlPath);
        }
        catch when (predecessor is null)
        {
            supervisor.Dispose();
            if (isReported) UffdRuntimeFolder.Remove(UffdRuntimeFolder.LogOf(controlPath!));
            throw;
        }

        if (isReported)
        {
            Console.Out.WriteLine(JsonSerializer.Serialize(new UffdControlReply { ControlPath = controlPath, Handler = supervisor.Status() }, UffdControlJson.Default.UffdControlReply));
            OwnSession.RedirectOthers();
            UffdDebug.WhenStarted();
        }

        var code = 1;
        try
        {
            code = supervisor.Run();
        }
        finally
        {
            // What was handed over is the other process's, paths too; the kernel closes what this one has of it.
            if (!supervisor.IsHandedOver) supervisor.Dispose();
        }

        // Who failed leaves behind why.
        if (isDetached && code == 0 && !supervisor.IsHandedOver) UffdRuntimeFolder.Remove(UffdRuntimeFolder.LogOf(supervisor.ControlPath));
        return code;

        void Stop(PosixSignalContext context)
        {
            context.Cancel = true;
            supervisor.Stop();
        }
    }
}
