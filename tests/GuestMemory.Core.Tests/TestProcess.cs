using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>What tests do to the processes of handlers, and read of them.</summary>
internal static class TestProcess
{
    /// <summary>Sends a signal; false where the process has ended and was reaped.</summary>
    public static bool Signal(int process, int signal)
    {
        using var descriptor = Pidfd.TryOpen(process, out _);
        return descriptor is not null && Pidfd.TrySignal(descriptor, signal) == 0;
    }

    /// <summary>Sends a signal that ends a process, and waits until it has ended; a child of this process is reaped.</summary>
    public static void End(int process, int signal)
    {
        using var descriptor = Pidfd.TryOpen(process, out _);
        if (descriptor is null) return;
        _ = Pidfd.TrySignal(descriptor, signal);
        Host.Until(() => Pidfd.TryReap(descriptor) is not null || !Directory.Exists($"/proc/{process}"));
    }

    /// <summary>Whether a process runs, or is stopped; one that has ended and was not reaped is not alive.</summary>
    public static bool IsAlive(int process) => State(process) is not (null or 'Z');

    /// <summary>What proc(5) calls the state of a process, such as T where it is stopped; null where there is none.</summary>
    public static char? State(int process)
    {
        try
        {
            return File.ReadAllText($"/proc/{process}/stat").Split(") ")[^1][0];
        }
        catch (IOException)
        {
            return null;
        }
    }

    /// <summary>The children of a process; none where it has ended.</summary>
    public static int[] Children(int process)
    {
        try
        {
            return [.. File.ReadAllText($"/proc/{process}/task/{process}/children").Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(static text => int.Parse(text, CultureInfo.InvariantCulture))];
        }
        catch (IOException)
        {
            return [];
        }
    }

    /// <summary>Whether a process has entered a seccomp filter, as a worker does right before it is ready; false where the process has ended.</summary>
    public static bool IsConfined(int process)
    {
        try
        {
            return File.ReadLines($"/proc/{process}/status").Contains("Seccomp:\t2", StringComparer.Ordinal);
        }
        catch (IOException)
        {
            return false;
        }
    }

    /// <summary>A number out of the environment, as a longer run of a test sets it.</summary>
    public static int Setting(string variable, int value) =>
        int.TryParse(Environment.GetEnvironmentVariable(variable), NumberStyles.None, CultureInfo.InvariantCulture, out var set) ? set : value;
}
