using System.Diagnostics;
using System.Text.Json;

namespace GuestMemory.Bench;

/// <summary>The C client that touches pages (uffd-client.c), as a process, and what it says.</summary>
internal static class UffdClient
{
    /// <summary>Any processor.</summary>
    public static readonly string Anywhere = $"0-{Environment.ProcessorCount - 1}";

    /// <summary>Starts it; it was compiled into the folder.</summary>
    public static Process Start(string folder, string cpus, string socket, int mib, params string[] more) => Process.Start(
        new ProcessStartInfo("taskset", ["-c", cpus, Path.Combine(folder, "uffd-client"), socket, $"{mib}", .. more]) { UseShellExecute = false, RedirectStandardOutput = true })!;

    /// <summary>Waits until it has touched everything, and reads figures by their names.</summary>
    public static double[] Figures(Process client, params string[] names)
    {
        using var json = JsonDocument.Parse(client.StandardOutput.ReadLine() ?? throw new InvalidOperationException("The client failed."));
        if (json.RootElement.GetProperty("bad").GetInt64() != 0) throw new InvalidOperationException("The client found wrong pages.");
        return [.. names.Select(name => json.RootElement.GetProperty(name).GetDouble())];
    }

    /// <summary>One of them.</summary>
    public static double Figure(Process client, string name) => Figures(client, name)[0];
}
