namespace GuestMemory.Core.Tests;

/// <summary>A socket that is opened to another user, in a directory whose owner replaces it at that moment.</summary>
public sealed class UnixListenerTests : IDisposable
{
    private const int Rounds = 300;
    private const uint Other = 65534;
    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [OtherUserFact]
    public void NoOtherFileIsGivenAway() => ReplaceWhileOpening();

    [OtherUserFact]
    public void NoOtherFileIsGivenAwayWithoutNetAdmin() => Sandbox.WithoutSocketFiles(ReplaceWhileOpening);

    [OtherUserFact]
    public void TheSocketBelongsToTheOtherUser()
    {
        using (UnixListener.Open(_folder["s"], "65534", force: false))
        {
            Assert.Equal(0, FileStatus.TryGet(_folder["s"], out var status));
            Assert.Equal((Other, FileStatus.S_IFSOCK | 0b110_000_000), (status.stx_uid, (int)status.stx_mode));
        }

        Assert.False(File.Exists(_folder["s"]));
    }

    private void ReplaceWhileOpening()
    {
        var path = _folder["s"];
        var (over, replaced) = (false, 0);
        for (var i = 0; i < Rounds; i++) File.WriteAllText(_folder[$"victim{i}"], "");
        var owner = new Thread(() =>
        {
            while (!Volatile.Read(ref over) && replaced < Rounds)
            {
                if (FileStatus.TryGet(path, out var status) != 0 || (status.stx_mode & FileStatus.S_IFMT) != FileStatus.S_IFSOCK) continue;
                File.Move(_folder[$"victim{replaced}"], path, overwrite: true);
                Interlocked.Increment(ref replaced);
            }
        });
        owner.Start();
        try
        {
            for (var round = 0; round < Rounds; round++)
            {
                var before = Volatile.Read(ref replaced);
                try
                {
                    UnixListener.Open(path, "65534", force: false).Dispose();
                }
                catch (GuestMemoryException)
                {
                    // It lies elsewhere now, or does not exist.
                }

                if (Volatile.Read(ref replaced) == before) continue;
                // The listener may have deleted it in the belief that it was its socket; that harms the owner of the directory alone.
                if (FileStatus.TryGet(path, out var victim) != 0) continue;
                Assert.Equal(0u, victim.stx_uid);
                File.Delete(path);
            }
        }
        finally
        {
            Volatile.Write(ref over, true);
            owner.Join();
        }

        Assert.NotEqual(0, replaced);
    }
}
