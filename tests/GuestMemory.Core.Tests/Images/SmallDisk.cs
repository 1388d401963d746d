using System.Diagnostics;
using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>A tmpfs of a few pages, mounted at a folder that is made for it; unmounted afterwards.</summary>
internal sealed class SmallDisk : IDisposable
{
    private readonly string _path;

    private SmallDisk(string path) => _path = path;

    /// <summary>Null where this user, or this machine, may not mount one.</summary>
    public static SmallDisk? TryMake(string path, int size)
    {
        Directory.CreateDirectory(path);
        return Run("mount", "-t", "tmpfs", "-o", string.Create(CultureInfo.InvariantCulture, $"size={size},huge=never"), "tmpfs", path) ? new SmallDisk(path) : null;
    }

    public void Dispose() => Run("umount", _path);

    private static bool Run(string program, params string[] arguments)
    {
        using var process = Process.Start(new ProcessStartInfo(program, arguments) { RedirectStandardError = true, UseShellExecute = false })!;
        process.StandardError.ReadToEnd();
        process.WaitForExit();
        return process.ExitCode == 0;
    }
}
