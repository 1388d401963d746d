using System.Diagnostics;
using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <content>What the handler's processes may do: as whom they run, with which capabilities, and under which filter.</content>
public sealed partial class HostTests
{
    private const string OtherUser = "nobody";
    private const string NeedsRoot = "needs root, which alone has something to give up";
    private const string NoCapability = "0000000000000000";

    private static readonly string[] s_sets = ["CapInh", "CapPrm", "CapEff", "CapAmb"];

    [UffdFact]
    public void EveryThreadOfAWorkerCanOnlyServe()
    {
        var handler = Start(64);
        var memory = Memory((0, 64));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 8);
        Host.Until(() => Children(handler.ProcessId).Length == 2);
        foreach (var worker in Children(handler.ProcessId))
        {
            // The spare one may be on its way.
            Host.Until(() => Threads(worker).All(static thread => thread["Seccomp"] == "2"));
            foreach (var thread in Threads(worker))
            {
                Assert.Equal("1", thread["NoNewPrivs"]);
                foreach (var set in s_sets) Assert.Equal((set, NoCapability), (set, thread[set]));
                if (Needs.Root) Assert.Equal(NoCapability, thread["CapBnd"]);
            }
        }

        TestFolder.AssertPages(memory, 8 * 4096, 8, 56);
        Assert.Equal((1, null), (handler.WorkerCount, handler.Error));
    }

    /// <summary>The kernel ends a process so that makes a call which its filter does not know.</summary>
    [UffdFact]
    public void AWorkerThatMakesAForbiddenCallIsReplacedAndTold()
    {
        var handler = Start(16);
        var memory = Memory((0, 16));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 8);
        var worker = handler.WorkerProcessId;
        Assert.True(Signal(worker, Pidfd.SIGSYS));
        TestFolder.AssertPages(memory, 8 * 4096, 8, 8);
        // The first one may have served them before its end.
        Host.Until(() => handler is { WorkerCount: 2, State: UffdHandlerState.Serving });
        Assert.Contains($"ForbiddenCall: worker {worker} ended (signal 31, SIGSYS)", handler.Error, StringComparison.Ordinal);
        Assert.Contains($"ForbiddenCall: worker {worker} ended", LogOf(handler), StringComparison.Ordinal);
        Assert.Equal(1, handler.ConnectionCount);
    }

    /// <summary>To kill the VMM of another user takes one capability, and no other is kept.</summary>
    [CompilerFact]
    public void TheVmmOfAnotherUserIsKilled()
    {
        Assert.SkipUnless(Needs.Root && File.Exists("/usr/bin/setpriv"), $"{NeedsRoot}, and setpriv ('apt-get install util-linux')");
        OpenFolder();
        _folder.WriteImage("image", 256);
        var handler = UffdHandler.StartProcess(new UffdHandlerOptions
        {
            SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand, OnError = UffdOnError.Kill, AllowUser = [OtherUser], SourceTimeout = TimeSpan.FromMilliseconds(50),
        });
        Assert.All(Threads(handler.WorkerProcessId), static thread => Assert.Equal("0000000000000020", thread["CapEff"]));
        Assert.Equal(0, Compiler.Run("truncate", "-s", "65536", _folder["image"]).Code);
        var client = Compiler.Compile(Path.Combine(AppContext.BaseDirectory, "Userfault", "uffd-client.c"), _folder["client"]);
        // As any user it may have page faults of the kernel served only with this right.
        string[] command = [$"--reuid={OtherUser}", "--clear-groups", "--inh-caps=+sys_ptrace", "--ambient-caps=+sys_ptrace", client, handler.SocketPath, "1", "--order", "seq"];
        using var process = Process.Start(new ProcessStartInfo("setpriv", command) { UseShellExecute = false })!;
        Assert.True(process.WaitForExit(Host.Patience));
        Assert.Equal(128 + Pidfd.SIGKILL, process.ExitCode);
        // A spare worker that is started now says something else of the image.
        Host.Until(() => LogOf(handler).Contains("The VMM is killed, as OnError says.", StringComparison.Ordinal));
    }

    /// <summary>Whether a file is in memory the kernel tells its owner, or who may do as its owner.</summary>
    [Fact]
    public void OfTheImageOfAnotherUserItIsKnownWhatIsInMemory()
    {
        Assert.SkipUnless(Needs.Root, NeedsRoot);
        _folder.WriteImage("image", 16);
        using (var file = FileStatus.TryOpenPath(_folder["image"], out _)!) Assert.Equal(0, FileStatus.TryChangeOwner(file, Users.Find(OtherUser)));
        var handler = UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"] });
        Assert.All(Threads(handler.WorkerProcessId), static thread => Assert.Equal("0000000000000008", thread["CapEff"]));
    }

    /// <summary>The new program starts as that user, in whose reach are neither the image nor the folder of the control socket.</summary>
    [UffdFact]
    public void AHandlerOfAnotherUserGoesOnInTheNewProgram()
    {
        Assert.SkipUnless(Needs.Root, NeedsRoot);
        Assert.SkipUnless(IsOpenToAll(AppContext.BaseDirectory), $"needs a build that every user may read, and {AppContext.BaseDirectory} is none");
        Assert.Equal(0, FileStatus.TryChangeMode(_folder.WriteImage("image", 64), 0b100_000_000));
        var handler = UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand, User = OtherUser });
        var memory = Memory((0, 64));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 8);
        for (var round = 1; round < 3; round++)
        {
            var before = handler.ProcessId;
            handler.Upgrade(TimeSpan.FromSeconds(60));
            Assert.NotEqual(before, handler.ProcessId);
            TestFolder.AssertPages(memory, (ulong)round * 8 * 4096, round * 8, 8);
            Assert.All(Threads(handler.WorkerProcessId), static thread => Assert.StartsWith(Users.Find(OtherUser).ToString(CultureInfo.InvariantCulture), thread["Uid"], StringComparison.Ordinal));
            Assert.Same(handler, Host.OnlyHandler());
        }

        handler.Stop();
        Assert.Equal((UffdHandlerState.Stopped, 1), (handler.State, handler.AbandonedCount));
        Host.Until(() => UffdHandler.FindAll().Count == 0 && Directory.GetFiles(runtime.Folder.Path, "*.sock").Length == 0);
        foreach (var log in Directory.GetFiles(runtime.Folder.Path)) File.Delete(log);
    }

    /// <summary>Socket, image and control socket are root's; all else the other user does.</summary>
    [UffdTheory]
    [InlineData(UffdOnError.Poison, 0L)]
    [InlineData(UffdOnError.Kill, 1L << Capabilities.CAP_KILL)]
    public void AHandlerRunsAsAnotherUser(UffdOnError onError, long capabilities)
    {
        Assert.SkipUnless(Needs.Root, NeedsRoot);
        Assert.SkipUnless(IsOpenToAll(AppContext.BaseDirectory), $"needs a build that every user may read, and {AppContext.BaseDirectory} is none");
        // Nothing may be opened later: neither the folder nor the image is the user's.
        Assert.Equal(0, FileStatus.TryChangeMode(_folder.WriteImage("image", 64), 0b100_000_000));
        var handler = UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand, OnError = onError, User = OtherUser });
        Assert.Equal(0, FileStatus.TryGet(handler.SocketPath, out var socket));
        Assert.Equal(Users.Find(OtherUser), socket.stx_uid);
        var memory = Memory((0, 64));
        UffdRegistration.Connect(handler.SocketPath, memory);
        TestFolder.AssertPages(memory, 0, 0, 8);
        // Of another user's image it needs to be told what is in memory.
        var kept = (capabilities | (1L << Capabilities.CAP_FOWNER)).ToString("x16", CultureInfo.InvariantCulture);
        AssertIs(handler.ProcessId, kept);
        AssertIs(handler.WorkerProcessId, kept);

        // Workers are started as that user, too.
        for (var round = 2; round < 5; round++)
        {
            Host.Until(() => Children(handler.ProcessId).Length == 2);
            Assert.True(Signal(handler.WorkerProcessId, 9));
            TestFolder.AssertPages(memory, (ulong)round * 8 * 4096, round * 8, 8);
            Host.Until(() => handler.WorkerCount == round);
            AssertIs(handler.WorkerProcessId, kept);
        }

        Assert.Same(handler, Host.OnlyHandler());
        handler.Stop();
        Assert.Equal((UffdHandlerState.Stopped, 1), (handler.State, handler.AbandonedCount));
        // The names are in folders that are root's; the next look takes that of the control socket away.
        Host.Until(() => UffdHandler.FindAll().Count == 0 && Directory.GetFiles(runtime.Folder.Path, "*.sock").Length == 0);
        foreach (var log in Directory.GetFiles(runtime.Folder.Path)) File.Delete(log);

        void AssertIs(int process, string expected)
        {
            var user = Users.FindAccount(OtherUser);
            foreach (var thread in Threads(process))
            {
                Assert.Equal(string.Create(CultureInfo.InvariantCulture, $"{user.User}\t{user.User}\t{user.User}\t{user.User}"), thread["Uid"]);
                Assert.Equal(string.Create(CultureInfo.InvariantCulture, $"{user.Group}\t{user.Group}\t{user.Group}\t{user.Group}"), thread["Gid"]);
                Assert.Equal(user.Groups.Order(), thread["Groups"].Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(static group => uint.Parse(group, CultureInfo.InvariantCulture)).Order());
                // Of the supervisor's threads the one alone that starts workers keeps something.
                if (process == handler.WorkerProcessId || thread["Pid"] == process.ToString(CultureInfo.InvariantCulture)) Assert.Equal(expected, thread["CapEff"]);
                else Assert.True(thread["CapEff"] is NoCapability || thread["CapEff"] == expected, thread["CapEff"]);
            }
        }
    }

    [Fact]
    public void AUserThatIsNoneIsNamed()
    {
        _folder.WriteImage("image", 1);
        var error = Assert.Throws<GuestMemoryException>(() => UffdHandler.StartProcess(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], User = "no-such-user" }));
        Assert.Equal(GuestMemoryError.UserNotFound, error.Error);
        Assert.False(File.Exists(_folder["h.sock"]));
        Assert.Empty(Directory.GetFileSystemEntries(runtime.Folder.Path));
        error = Assert.Throws<GuestMemoryException>(() => UffdHandler.Start(new UffdHandlerOptions { SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], User = OtherUser }));
        Assert.Equal(GuestMemoryError.ValueNotSupported, error.Error);
    }

    /// <summary>A thread is another user, and without rights, to its end; the process stays what it is.</summary>
    [Fact]
    public void WhoIsNotRootCannotBeAnother()
    {
        Assert.SkipUnless(Needs.Root, NeedsRoot);
        Stress.RunAll(static () =>
        {
            Capabilities.Drop(0, Users.FindAccount(OtherUser), wholeProcess: false);
            Assert.Equal((Users.Find(OtherUser), 0UL), (Users.Current, Capabilities.Current));
            var error = Assert.Throws<GuestMemoryException>(static () => UffdHost.Privileges.UserOf(new UffdHandlerOptions { SocketPath = "", MemoryPath = "", User = "root" }));
            Assert.Equal(GuestMemoryError.UserDenied, error.Error);
            // As itself it may run, which is what another supervisor under the same options does.
            Assert.Equal(Users.Current, UffdHost.Privileges.UserOf(new UffdHandlerOptions { SocketPath = "", MemoryPath = "", User = OtherUser })!.User);
        });
        Assert.Equal(0u, Users.Current);
        Assert.NotEqual(0UL, Capabilities.Current);
    }

    /// <summary>What /proc says of every thread of a process, by name.</summary>
    private static Dictionary<string, string>[] Threads(int process) =>
    [
        .. Directory.GetDirectories($"/proc/{process}/task").Select(static task =>
        {
            try
            {
                return File.ReadAllLines(Path.Combine(task, "status"));
            }
            catch (IOException)
            {
                // It has just ended.
                return [];
            }
        }).Where(static lines => lines.Length > 0).Select(static lines => lines.Select(static line => line.Split(":\t", 2)).Where(static parts => parts.Length == 2).ToDictionary(static parts => parts[0], static parts => parts[1], StringComparer.Ordinal)),
    ];

    private static bool IsOpenToAll(string path)
    {
        for (var folder = new DirectoryInfo(path); folder is not null; folder = folder.Parent)
        {
            if ((folder.UnixFileMode & UnixFileMode.OtherExecute) == 0) return false;
        }

        return true;
    }

    private string LogOf(UffdHandler handler) => File.ReadAllText(UffdRuntimeFolder.LogOf(UffdRuntimeFolder.SocketOf(runtime.Folder.Path, handler.ProcessId)));

    private void OpenFolder() => Assert.Equal(0, FileStatus.TryChangeMode(_folder.Path, 0b111_001_001));
}
