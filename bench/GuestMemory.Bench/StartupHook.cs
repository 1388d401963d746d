using System.Diagnostics.CodeAnalysis;
using System.Globalization;

/// <summary>
/// What DOTNET_STARTUP_HOOKS runs in a process under test before its own Main: at its end the process tells how often it
/// collected garbage, from its start on, in a file named after it in the folder that the variable names.
/// </summary>
[SuppressMessage("Design", "CA1050:Declare types in namespaces", Justification = "The runtime looks for this name.")]
[SuppressMessage("Design", "MA0047:Declare types in namespaces", Justification = "The runtime looks for this name.")]
internal static class StartupHook
{
    public const string Variable = "GUESTMEMORY_BENCH_COLLECTIONS";

    public static void Initialize() => AppDomain.CurrentDomain.ProcessExit += static (_, _) => File.WriteAllText(
        FileOf(Environment.GetEnvironmentVariable(Variable)!, Environment.ProcessId), GC.CollectionCount(0).ToString(CultureInfo.InvariantCulture));

    public static string FileOf(string folder, int process) => Path.Combine(folder, string.Create(CultureInfo.InvariantCulture, $"collections-{process}"));
}
