namespace GuestMemory.Core.Tests;

/// <summary>A socket that is opened to another user.</summary>
public sealed class UnixListenerTests : IDisposable
{
    private const uint Other = 65534;
    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [OtherUserFact]
    public void TheSocketBelongsToTheOtherUser()
    {
        using (Open())
        {
            Assert.Equal(0, FileStatus.TryGet(_folder["s"], out var status));
            Assert.Equal((Other, FileStatus.S_IFSOCK | 0b110_000_000), (status.stx_uid, (int)status.stx_mode));
        }

        Assert.False(File.Exists(_folder["s"]));
    }

    /// <summary>The owner of the directory, a jailed VMM for example, puts another file in the place of the socket that was bound.</summary>
    [OtherUserFact]
    public void NoOtherFileIsGivenAway()
    {
        File.WriteAllText(_folder["victim"], "");
        var replaced = 0;
        Sandbox.BeforeChown(
            () =>
            {
                replaced++;
                File.Move(_folder["s"], _folder["socket"]);
                File.Move(_folder["victim"], _folder["s"]);
            },
            () => Open().Dispose());
        Assert.Equal(1, replaced);
        Assert.Equal(0, FileStatus.TryGet(_folder["s"], out var victim));
        Assert.Equal(0, FileStatus.TryGet(_folder["socket"], out var socket));
        Assert.Equal((0u, Other), (victim.stx_uid, socket.stx_uid));
    }

    /// <summary>Without CAP_NET_ADMIN the kernel does not give the socket's file: another file is not taken for it.</summary>
    [OtherUserFact]
    public void AnotherFileIsNotTakenForTheSocket()
    {
        using var socket = UnixSocket.Create(nonBlocking: true);
        Assert.Equal(0, UnixSocket.TryBind(socket, _folder["s"]));
        Sandbox.WithoutSocketFiles(() =>
        {
            using (var file = UnixSocket.TryOpenFile(socket, _folder["s"], out _)) Assert.NotNull(file);
            File.Move(_folder["s"], _folder["socket"]);
            File.WriteAllText(_folder["s"], "");
            Assert.Null(UnixSocket.TryOpenFile(socket, _folder["s"], out var error));
            Assert.Equal(Errno.EPERM, error);
        });
    }

    /// <summary>A connection that the listener has accepted has its path, too, and may be open when the listener is gone: its child's, for example.</summary>
    [Fact]
    public void ASocketWithoutAListenerIsReplacedThoughAConnectionIsOpen()
    {
        using var peer = UnixSocket.Create(nonBlocking: false);
        using var former = UnixSocket.Create(nonBlocking: false);
        Assert.Equal((0, 0), (UnixSocket.TryBind(former, _folder["s"]), UnixSocket.TryListen(former, 1)));
        Assert.Equal(GuestMemoryError.SocketInUse, Assert.Throws<GuestMemoryException>(Listen).Error);
        Assert.Equal(0, UnixSocket.TryConnect(peer, _folder["s"]));
        using var accepted = UnixSocket.TryAccept(former, out _, nonBlocking: false);
        former.Dispose();
        Assert.Contains(File.ReadLines("/proc/net/unix"), line => line.EndsWith(" " + _folder["s"], StringComparison.Ordinal));
        using var listener = Listen();
        Assert.Equal(_folder["s"], listener.Path);

        UnixListener Listen() => UnixListener.Open(_folder["s"], allowed: null, force: false);
    }

    private UnixListener Open() => UnixListener.Open(_folder["s"], AllowedPeers.Find(["65534"], []), force: false);
}
