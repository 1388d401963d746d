using GuestMemory.Core;
using GuestMemory.Core.Userfault;
using static GuestMemory.Bench.BenchTools;

namespace GuestMemory.Bench;

/// <summary>The handler under test, alone in its process.</summary>
internal static class Server
{
    public static int Run(string socket, string image, string[] options)
    {
        using var handler = UffdHandler.Start(new UffdHandlerOptions
        {
            SocketPath = socket,
            MemoryPath = image,
            Strategy = Enum.Parse<UffdStrategy>(Text(options, "--strategy") ?? nameof(UffdStrategy.OnDemand)),
            RecordPath = Text(options, "--record"),
            ReplayPath = Text(options, "--replay"),
            WindowSize = (ulong)Option(options, "--window", 64 << 10),
        });
        Console.WriteLine("ready");
        while (Console.In.Read() >= 0)
        {
        }

        Console.Error.WriteLine($"{handler.TotalConnectionCount} VMs, {handler.FaultCount} faults, p50 {handler.LatencyP50.TotalMicroseconds:0.0} us inside the handler, {GC.CollectionCount(0)} collections");
        return handler.Error is null ? 0 : 1;
    }
}
