using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <content>The log of a handler's process.</content>
public sealed partial class HostTests
{
    // More than a log of 1 MiB holds.
    private const int FloodCount = 10_000;

    /// <summary>A VMM that fills the log with errors has none of the others' withheld.</summary>
    [UffdFact]
    public void AFloodOfErrorsHidesNoOthers()
    {
        _folder.WriteImage("image", 16);
        using var handler = UffdHandler.StartProcess(new UffdHandlerOptions
        {
            SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand, SourceTimeout = TimeSpan.Zero, NoReadAhead = true,
        });
        var memory = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, memory);
        for (var i = 1; i <= FloodCount; i++) Refuse(i, isLast: i == FloodCount);
        // The first that came are there; later ones are left out.
        Assert.Contains(" of an image that is 65536 bytes long", Log(handler), StringComparison.Ordinal);
        Assert.Equal(0, Compiler.Run("truncate", "-s", "32768", _folder["image"]).Code);
        Assert.Throws<GuestMemoryException>(() => memory.ReadExact(new GuestAddress(12 * 4096), new byte[8]));
        Host.Until(() => Log(handler).Contains("cannot be read at offset 0xc000", StringComparison.Ordinal));
        // How many it were is said.
        Host.Until(() => Log(handler).Contains("more lines of user ", StringComparison.Ordinal));

        void Refuse(int number, bool isLast)
        {
            using var peer = new RawPeer(handler.SocketPath);
            peer.Send([new GuestRegionUffdMapping(1UL << 40, 16 * 4096, (ulong)number * 16 * 4096, 4096)]);
            // They come to an end in their order.
            if (isLast) Host.Until(() => peer.IsHungUp);
        }
    }

    /// <summary>systemd says which stream is the journal's.</summary>
    [Theory]
    [InlineData("%d:%i", "^<[2-7]>2")]
    [InlineData("%d:1%i", "^2")]
    public void LinesHavePrioritiesWhereTheJournalReadsThem(string stream, string beginning)
    {
        _folder.WriteImage("image", 16);
        File.WriteAllText(_folder["journal"], "");
        var start = UffdHostProcess.Command();
        var command = $"JOURNAL_STREAM=$(stat -c {stream} \"$0\"); export JOURNAL_STREAM; exec \"$@\" 2>>\"$0\"";
        using var process = Process.Start("sh", ["-c", command, _folder["journal"], start.FileName, .. start.ArgumentList, "--socket-path", _folder["h.sock"], "--memory-path", _folder["image"]]);
        Host.Until(() => UffdHandler.FindAll().Count == 1 || process.HasExited);
        using (var handler = Host.OnlyHandler()) handler.Stop();
        Assert.True(process.WaitForExit(Host.Patience));
        var lines = File.ReadAllLines(_folder["journal"]);
        Assert.Contains(lines, static line => line.Contains(" listening at ", StringComparison.Ordinal));
        Assert.All(lines, line => Assert.Matches(beginning, line));
    }

    private static string Log(UffdHandler handler) => File.ReadAllText(UffdRuntimeFolder.LogOf(UffdRuntimeFolder.SocketOf(UffdRuntimeFolder.Make(), handler.ProcessId)));
}
