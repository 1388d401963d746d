using GuestMemory.Core.Interop;

using System.Runtime.CompilerServices;

namespace GuestMemory.Core.Userfault;

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
    /// <param name="source">What they will be served from, asked for its first page; null where that is another process's matter.</param>
    /// <param name="start">Starts what serves at a path until it is disposed; null for a handler of this process.</param>
    public static void Run(UffdPolicy policy, PageSource? source, Func<string, UffdPolicy, PageSource, IDisposable>? start = null)
    {
        // A program that was compiled ahead has nothing to rehearse.
        if (!RuntimeFeature.IsDynamicCodeCompiled) return;
        if (source is not null)
        {
            using var scratch = new PageScratch();
            _ = source.Locate(0, Math.Min(source.Length & ~(HostPage.Size - 1), HostPage.Size), scratch, out _);
        }

        var bit = 1 << (int)policy.Strategy;
        if ((Interlocked.Or(ref s_rehearsed, bit) & bit) != 0) return;
        DirectoryInfo? folder = null;
        try
        {
            folder = Directory.CreateTempSubdirectory("gm-");
            Serve(policy, Path.Combine(folder.FullName, "rehearsal"), start ?? Handler.Start);
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

    private static void Serve(UffdPolicy policy, string path, Func<string, UffdPolicy, PageSource, IDisposable> start)
    {
        using var source = new Stage();
        using var rehearsed = new UffdPolicy
        {
            Strategy = policy.Strategy,
            Window = policy.Window,
            Replay = policy.Replay is null ? null : new UffdReplay([1, 2, 3, 5], source.Length),
        };
        using var handler = start(path, rehearsed, source);
        for (var round = 0; round < Rounds; round++) Touch(path);
    }

    /// <summary>The options of who serves a rehearsal.</summary>
    public static UffdHandlerOptions Options(string path) => new() { SocketPath = path, MemoryPath = "a rehearsal", HandoverTimeout = s_patience };

    private static void Touch(string path)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * HostPage.Size).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(path, memory);
        Span<byte> bytes = stackalloc byte[8];
        for (ulong page = Pages; page-- > 0;) memory.Read(new GuestAddress(page * HostPage.Size), bytes);
        region.GetMmapRegion().Discard(0, HostPage.Size);
        memory.Read(new GuestAddress(0), bytes);
    }

    private sealed class Handler : IDisposable
    {
        private readonly UffdServer _server;
        private readonly Thread _thread;

        private Handler(UffdServer server)
        {
            _server = server;
            _thread = new Thread(Run) { IsBackground = true, Name = "uffd-rehearsal" };
            _thread.Start();
        }

        public static IDisposable Start(string path, UffdPolicy policy, PageSource source) =>
            new Handler(Server(path, policy, source));

        private static UffdServer Server(string path, UffdPolicy policy, PageSource source)
        {
            var options = Options(path);
            var server = new UffdServer(options);
            server.Add(new UffdImageService(options.OnlyImage, source, policy, UnixListener.Open(path, null, force: false)));
            return server;
        }

        public void Dispose()
        {
            _ = _server.Figures();
            _server.Stop();
            _thread.Join();
        }

        private void Run()
        {
            // Who waits for a page waits no longer when it is closed.
            using var server = _server;
            try
            {
                server.Run();
            }
            catch (GuestMemoryException)
            {
                // The real one will say it.
            }
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
