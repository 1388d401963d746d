using System.Diagnostics;

namespace GuestMemory.Bench;

/// <summary>A handler process, pinned; ended with its standard input, or killed.</summary>
internal sealed class HandlerProcess : IDisposable
{
    private readonly Process _process;

    public HandlerProcess(string cpu, string program, string[] arguments) => _process = Process.Start(
        new ProcessStartInfo("taskset", ["-c", cpu, program, .. arguments]) { UseShellExecute = false, RedirectStandardInput = true, RedirectStandardOutput = true })!;

    public void Expect(string line)
    {
        if (_process.StandardOutput.ReadLine() != line) throw new InvalidOperationException("The handler did not start.");
    }

    public void WaitFor(string socket)
    {
        for (var i = 0; i < 2000 && !IsListening(socket) && !_process.HasExited; i++) Thread.Sleep(5);
    }

    public void Dispose()
    {
        _process.StandardInput.Close();
        if (!_process.WaitForExit(5000)) _process.Kill();
        _process.Dispose();
    }

    /// <summary>Asking by connecting would use up the baseline's only connection.</summary>
    private static bool IsListening(string socket) =>
        File.ReadLines("/proc/net/unix").Any(line => line.EndsWith(" " + socket, StringComparison.Ordinal) && line.Contains(" 00010000 ", StringComparison.Ordinal));
}
