using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <summary>Memory of every kind, while what serves it is killed or replaced again and again, with this process as its VMM.</summary>
[Collection(RuntimeFolder.Name)]
public sealed class SurvivalTests(RuntimeFolder runtime) : IDisposable
{
    private readonly TestFolder _folder = new();
    private readonly List<int> _processes = [];

    public static MatrixTheoryData<ServedKind, ServedEvent> Cases => new(Enum.GetValues<ServedKind>(), Enum.GetValues<ServedEvent>());

    public void Dispose()
    {
        runtime.StopAll();
        foreach (var process in _processes) End(process, 9);
        foreach (var file in Directory.GetFiles(runtime.Folder.Path)) File.Delete(file);
        _folder.Dispose();
    }

    /// <summary>
    /// Every byte is right, whatever happens while pages are touched and removed. GUESTMEMORY_CRASH_ROUNDS and GUESTMEMORY_UPGRADE_ROUNDS say how often
    /// (100 is what a release is tried with), GUESTMEMORY_CRASH_MIB how large the VM is. Each time waits until the one before is over, and a spare
    /// worker is ready; with GUESTMEMORY_EVENT_MILLISECONDS for so long instead, ready or not. The output has how long touches took.
    /// </summary>
    [UffdTheory]
    [MemberData(nameof(Cases))]
    public void NoVmIsLostAndNoPageIsWrong(ServedKind kind, ServedEvent what)
    {
        var rounds = what == ServedEvent.Upgrade ? Setting("GUESTMEMORY_UPGRADE_ROUNDS", 2) : Setting("GUESTMEMORY_CRASH_ROUNDS", 2);
        var interval = TimeSpan.FromMilliseconds(Setting("GUESTMEMORY_EVENT_MILLISECONDS", 0));
        var pages = kind == ServedKind.HugePages ? 4 * (rounds + 1) : Setting("GUESTMEMORY_CRASH_MIB", 8) * 256;
        using var memory = new ServedMemory(_folder, kind, pages);
        using var manager = new ServiceManager(_folder["notify"]);
        var handler = what == ServedEvent.SupervisorDeath ? StartManaged(manager, memory.Options) : UffdHandler.StartProcess(memory.Options);
        memory.Connect();
        if (what == ServedEvent.SupervisorDeath) Assert.True(manager.WasTold(_ => manager.Kept.Exists(static item => item.Name == "vm-1-list")), manager.Log);
        var touching = new Touching(memory.Memory, pages, Part(1), memory.PageSize, memory.NumberOf);
        var moments = new List<long>();
        var lastWorker = 0;
        for (var round = 1; round <= rounds && !touching.IsDone; round++)
        {
            if (interval == default) Host.Until(() => touching.IsDone || (touching.Progress >= Part(round) && (what != ServedEvent.WorkerDeath || IsSpareReady())));
            else if (moments.Count > 0 && interval - Stopwatch.GetElapsedTime(moments[^1]) is { Ticks: > 0 } left) Thread.Sleep(left);
            // Half of the round's pages before, half of them while it happens.
            touching.Limit = (Part(round) + Part(round + 1)) / 2;
            Thread.Sleep(Random.Shared.Next(5));
            moments.Add(Stopwatch.GetTimestamp());
            var happening = Task.Run(Happen);
            Thread.Sleep(Random.Shared.Next(30));
            touching.Limit = Part(round + 1);
            Assert.True(happening.Wait(Host.Patience), $"{handler.State}: {handler.Error}");
        }

        touching.Limit = long.MaxValue;
        touching.Join();
        Assert.Equal(rounds, moments.Count);
        Report(kind, what, touching.Longest(moments));
        Assert.Equal((UffdHandlerState.Serving, 1), (handler.State, handler.ConnectionCount));
        if (what == ServedEvent.WorkerDeath) Host.Until(() => handler.WorkerCount > rounds);
        else Assert.Null(handler.Error);
        handler.Stop();

        // As many pages as are touched before a round.
        long Part(int round) => (long)pages * round / (rounds + 1);

        bool IsSpareReady() => Children(handler.ProcessId) is { Length: 2 } workers && Array.TrueForAll(workers, IsConfined);

        void Happen()
        {
            switch (what)
            {
                case ServedEvent.WorkerDeath:
                    Host.Until(() => handler.WorkerProcessId is var worker and > 0 && worker != lastWorker && Signal(lastWorker = worker, 9));
                    break;
                case ServedEvent.SupervisorDeath:
                    ServiceManager.Kill(handler.ProcessId);
                    manager.Told.Clear();
                    handler = StartManaged(manager, memory.Options);
                    break;
                default:
                    handler.Upgrade(TimeSpan.FromSeconds(60));
                    break;
            }
        }
    }

    private static void Report(ServedKind kind, ServedEvent what, double[] longest)
    {
        Array.Sort(longest);
        TestContext.Current.TestOutputHelper!.WriteLine(string.Create(System.Globalization.CultureInfo.InvariantCulture,
            $"{what,-15} {kind,-10} {longest.Length} times, longest touch over each: median {longest[longest.Length / 2]:0.0} ms, p99 {longest[(longest.Length - 1) * 99 / 100]:0.0} ms, max {longest[^1]:0.0} ms"));
    }

    private UffdHandler StartManaged(ServiceManager manager, UffdHandlerOptions options)
    {
        var process = manager.Start(runtime.Folder.Path, [.. UffdArguments.From(options)]);
        _processes.Add(process);
        Assert.True(manager.WasTold(static text => text.Contains("READY=1", StringComparison.Ordinal), seconds: 90), manager.Log);
        return Host.OnlyHandler();
    }
}
