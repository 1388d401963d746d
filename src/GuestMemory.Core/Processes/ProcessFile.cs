using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Processes;

/// <summary>The files of <c>/proc/PID</c>, with errors that say what is wrong with the process.</summary>
internal static class ProcessFile
{
    /// <summary>Reads a file's lines as far as they are needed.</summary>
    /// <exception cref="GuestMemoryException">ProcessNotFound, ProcessDenied.</exception>
    public static T Read<T>(int process, string name, Func<IEnumerable<string>, T> read) => Open(process, name, path => read(File.ReadLines(path)));

    /// <summary>Opens a file, or does something else by its path.</summary>
    /// <exception cref="GuestMemoryException">ProcessNotFound, ProcessDenied.</exception>
    public static T Open<T>(int process, string name, Func<string, T> open)
    {
        var path = $"/proc/{process}/{name}";
        try
        {
            return open(path);
        }
        catch (UnauthorizedAccessException exception)
        {
            throw Denied(process, $"{path} may not be read.", exception);
        }
        catch (IOException exception)
        {
            if (exception is FileNotFoundException or DirectoryNotFoundException || exception.HResult == Errno.ESRCH) throw NotFound(process, exception);
            throw new GuestMemoryException(GuestMemoryError.SyscallFailed, $"{path} cannot be read: {exception.Message}", exception);
        }
    }

    /// <summary>A field of a thread's or process's status: "Seccomp", "TracerPid"; empty where the kernel has no such field.</summary>
    /// <param name="process">The process.</param>
    /// <param name="name">The file: "status", "task/TID/status".</param>
    /// <param name="field">The field.</param>
    public static string StatusOf(int process, string name, string field) => Read(process, name, lines =>
        lines.FirstOrDefault(line => line.StartsWith(field, StringComparison.Ordinal) && line.AsSpan(field.Length).StartsWith(":"))?[(field.Length + 1)..].Trim() ?? "");

    public static GuestMemoryException NotFound(int process, Exception? inner = null) =>
        new(GuestMemoryError.ProcessNotFound, $"There is no process {process}, or it has ended.", inner);

    public static GuestMemoryException Denied(int process, string what, Exception? inner = null) =>
        new(GuestMemoryError.ProcessDenied, $"This user may not examine process {process}: {what} Processes of another user, and those that may not be dumped, need root (CAP_SYS_PTRACE); the sysctl kernel.yama.ptrace_scope may forbid more.", inner);
}
