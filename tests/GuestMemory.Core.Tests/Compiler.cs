using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <summary>The C compiler of this machine.</summary>
internal static class Compiler
{
    /// <summary>Compiles a program and returns its path.</summary>
    public static string Compile(string source, string output, params string[] options)
    {
        var (code, text) = Run("cc", ["-O2", "-pthread", .. options, "-o", output, source]);
        Assert.True(code == 0, text);
        return output;
    }

    public static (int Code, string Output) Run(string program, params string[] arguments)
    {
        using var process = Process.Start(new ProcessStartInfo(program, arguments) { UseShellExecute = false, RedirectStandardOutput = true, RedirectStandardError = true })!;
        var errors = process.StandardError.ReadToEndAsync();
        var output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return (process.ExitCode, output + errors.Result);
    }
}
