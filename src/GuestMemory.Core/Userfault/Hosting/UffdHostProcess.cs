using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Text.Json;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>Starts the program that runs a handler in a process of its own.</summary>
internal static class UffdHostProcess
{
    private const string Name = "GuestMemory.UffdHost";
    private const int MaxErrorText = 2000;

    // The folder of a program: what was linked for one C library does not run on another.
    private static readonly string s_system = (RuntimeInformation.RuntimeIdentifier.Contains("musl", StringComparison.Ordinal) ? "linux-musl-" : "linux-")
        + RuntimeInformation.OSArchitecture.ToString().ToLowerInvariant();

    /// <summary>The variable that, at 0, keeps .NET from making a socket in /tmp for debuggers.</summary>
    public const string NoDiagnosticSocket = "DOTNET_EnableDiagnostics_IPC";

    /// <summary>The variable that, at 0, keeps .NET from waiting for a debugger or a profiler.</summary>
    public const string NoDiagnostics = "DOTNET_EnableDiagnostics";

    /// <summary>Starts it and waits until the handler listens; returns the path of its control socket, and what it says about itself.</summary>
    /// <exception cref="GuestMemoryException">What the handler says; HandlerStartFailed where it says nothing.</exception>
    public static (string ControlPath, UffdStatus Status) Start(UffdHandlerOptions options, CancellationToken cancellation)
    {
        cancellation.ThrowIfCancellationRequested();
        var start = Command();
        start.ArgumentList.Add("--detach");
        foreach (var argument in UffdArguments.From(options)) start.ArgumentList.Add(argument);
        start.RedirectStandardInput = start.RedirectStandardOutput = start.RedirectStandardError = true;
        start.WorkingDirectory = "/";
        start.Environment[NoDiagnosticSocket] = "0";
        using var process = Launch(start);
        process.StandardInput.Close();
        var errors = process.StandardError.ReadToEndAsync(CancellationToken.None);
        string? line;
        try
        {
            line = process.StandardOutput.ReadLineAsync(cancellation).AsTask().GetAwaiter().GetResult();
            // The process goes on; only one that has failed ends and lets its error text come to an end.
            cancellation.ThrowIfCancellationRequested();
        }
        catch (OperationCanceledException)
        {
            // It takes away what it has made; this process does not wait for that.
            using var started = Pidfd.TryOpen(process.Id, out _);
            if (started is not null) _ = Pidfd.TrySignal(started, Pidfd.SIGTERM);
            throw;
        }

        return Read(line) ?? throw Failed(start, errors.Result);
    }

    private static (string ControlPath, UffdStatus Status)? Read(string? line)
    {
        if (line is null) return null;
        UffdControlReply? reply;
        try
        {
            reply = JsonSerializer.Deserialize(line, UffdControlJson.Default.UffdControlReply);
        }
        catch (JsonException)
        {
            return null;
        }

        if (reply?.ErrorId is not null) throw reply.ToException(GuestMemoryError.HandlerStartFailed);
        return reply is { ControlPath: { } path, Handler: { } status } ? (path, status) : null;
    }

    private static Process Launch(ProcessStartInfo start)
    {
        try
        {
            return Process.Start(start)!;
        }
        catch (System.ComponentModel.Win32Exception exception)
        {
            throw new GuestMemoryException(GuestMemoryError.HandlerStartFailed,
                $"The handler's program could not be started: {exception.Message} ({start.FileName}).", exception);
        }
    }

    private static GuestMemoryException Failed(ProcessStartInfo start, string errors)
    {
        errors = errors.Trim();
        if (errors.Length > MaxErrorText) errors = errors[..MaxErrorText];
        return new GuestMemoryException(GuestMemoryError.HandlerStartFailed,
            $"The handler's process ({start.FileName}) ended before it listened.{(errors.Length > 0 ? " Its error output: " + errors : "")}");
    }

    /// <summary>The same as the path of a program and its first arguments.</summary>
    /// <exception cref="GuestMemoryException">HandlerStartFailed: it is not there.</exception>
    public static IReadOnlyList<string> CommandLine()
    {
        var start = Command();
        var program = start.FileName;
        if (!Path.IsPathRooted(program))
        {
            program = (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':', StringSplitOptions.RemoveEmptyEntries).Select(folder => Path.Combine(folder, start.FileName)).FirstOrDefault(File.Exists)
                ?? throw new GuestMemoryException(GuestMemoryError.HandlerStartFailed, $"The handler's program needs {start.FileName}, which is not in PATH.");
        }

        return [program, .. start.ArgumentList];
    }

    /// <summary>The program that was compiled ahead for this system, or the library of a build with the dotnet of this host.</summary>
    internal static ProcessStartInfo Command()
    {
#pragma warning disable IL3000 // Empty in a single file, where the base directory is right.
        var here = Path.GetDirectoryName(typeof(UffdHostProcess).Assembly.Location);
#pragma warning restore IL3000
        string[] folders = [Path.Combine(here ?? "", "uffdhost"), Path.Combine(AppContext.BaseDirectory, "uffdhost"), AppContext.BaseDirectory];
        foreach (var folder in folders)
        {
            var program = Path.Combine(folder, s_system, Name);
            if (File.Exists(program))
            {
                MakeExecutable(program);
                return new ProcessStartInfo(program);
            }

            var library = Path.Combine(folder, Name + ".dll");
            if (File.Exists(library)) return new ProcessStartInfo(Dotnet(), [library]);
        }

        throw new GuestMemoryException(GuestMemoryError.HandlerStartFailed,
            $"The handler's program {Name} is not in {folders[0]}: the installation is not complete.");
    }

    /// <summary>A NuGet package keeps no right to execute: what was installed from a gallery gets it here, for all who may read it.</summary>
    private static void MakeExecutable(string program)
    {
        const uint All = 0xFFF, Read = 0x124, Execute = 0x49;   // 07777, 0444, 0111
        if (FileStatus.TryGet(program, out var status, follow: true) != 0 || (status.stx_mode & Execute) != 0) return;
        var mode = status.stx_mode & All;
        var error = FileStatus.TryChangeMode(program, mode | ((mode & Read) >> 2));
        if (error != 0)
        {
            throw new GuestMemoryException(GuestMemoryError.HandlerStartFailed,
                $"The handler's program may not be executed, and this user may not change that ({Errno.Name(error)}). Its owner can: chmod a+x {program}");
        }
    }

    private static string Dotnet()
    {
        string?[] candidates =
        [
            Path.GetFileName(Environment.ProcessPath) == "dotnet" ? Environment.ProcessPath : null,
            Environment.GetEnvironmentVariable("DOTNET_HOST_PATH"),
            Environment.GetEnvironmentVariable("DOTNET_ROOT") is { Length: > 0 } root ? Path.Combine(root, "dotnet") : null,
        ];
        return Array.Find(candidates, File.Exists) ?? "dotnet";
    }
}
