using GuestMemory.Core.Interop;

using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <summary>
/// Serves a small VM of this process's own before the first real one comes. The runtime compiles what is used for the first time,
/// which would cost that VM 50 to 100 ms at its first page.
/// </summary>
internal static class UffdRehearsal
{
    private const int Pages = 64;
    private const int Rounds = 3;

    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(5);
    private static int s_rehearsed;

    /// <summary>Goes through what a strategy needs, once in a process. Where it cannot (this user may not create a userfaultfd) nothing is lost but time.</summary>
    /// <param name="policy">How the VMs will be served.</param>
    /// <param name="source">What they will be served from; asked for its first page.</param>
    public static void Run(UffdPolicy policy, PageSource source)
    {
        using (var scratch = new PageScratch()) _ = source.Locate(0, Math.Min(source.Length & ~(HostPage.Size - 1), HostPage.Size), scratch, out _);
        var bit = 1 << (int)policy.Strategy;
        if ((Interlocked.Or(ref s_rehearsed, bit) & bit) != 0) return;
        DirectoryInfo? folder = null;
        try
        {
            folder = Directory.CreateTempSubdirectory("gm-");
            Serve(policy, Path.Combine(folder.FullName, "rehearsal"));
        }
        catch (Exception exception) when (exception is GuestMemoryException or IOException or UnauthorizedAccessException)
        {
            // Only the first VM will notice.
        }
        finally
        {
            folder?.Delete(recursive: true);
        }
    }

    private static void Serve(UffdPolicy policy, string path)
    {
        using var source = new Stage();
        using var rehearsed = new UffdPolicy
        {
            Strategy = policy.Strategy,
            Window = policy.Window,
            Replay = policy.Replay is null ? null : new UffdReplay([1, 2, 3, 5], source.Length),
        };
        using var server = new UffdServer(UnixListener.Open(path, null, force: false), source, rehearsed, new UffdHandlerOptions { SocketPath = path, MemoryPath = source.Name, HandoverTimeout = s_patience });
        var thread = new Thread(() => RunQuietly(server)) { IsBackground = true, Name = "uffd-rehearsal" };
        thread.Start();
        try
        {
            for (var round = 0; round < Rounds; round++) Touch(path);
            _ = server.Figures();
        }
        finally
        {
            server.Stop();
            thread.Join();
        }
    }

    private static void Touch(string path)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * HostPage.Size).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(path, memory);
        Span<byte> bytes = stackalloc byte[8];
        for (ulong page = Pages; page-- > 0;) memory.Read(new GuestAddress(page * HostPage.Size), bytes);
        region.GetMapping().Discard(0, HostPage.Size);
        memory.Read(new GuestAddress(0), bytes);
    }

    private static void RunQuietly(UffdServer server)
    {
        try
        {
            server.Run();
        }
        catch (GuestMemoryException)
        {
            // The real one will say it.
        }
    }

    /// <summary>Pages of ones and of zeros in turn.</summary>
    private sealed unsafe class Stage : PageSource
    {
        private readonly byte[] _ones = GC.AllocateArray<byte>((int)HostPage.Size, pinned: true);

        public override string Name => "a rehearsal";

        public override ulong Length => Pages * HostPage.Size;

        public override int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run)
        {
            var isZero = (offset / HostPage.Size & 1) == 0;
            run = new PageRunData(isZero ? null : (byte*)Unsafe.AsPointer(ref _ones[0]), HostPage.Size);
            return 0;
        }

        public override void Dispose()
        {
        }
    }
}
