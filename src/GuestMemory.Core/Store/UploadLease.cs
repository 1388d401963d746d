using System.Globalization;
using System.Text;

namespace GuestMemory.Core.Store;

/// <summary>
/// An upload that is under way: an object uploads/ID, which is written again and again while the upload lives. A collection removes no pack
/// that an upload may count on; the lease of an upload that has died is removed by the next one.
/// </summary>
internal sealed class UploadLease : IAsyncDisposable
{
    public const string Prefix = "uploads/";

    /// <summary>After so long without being renewed an upload counts as dead.</summary>
    public static readonly TimeSpan Lifetime = TimeSpan.FromMinutes(10);

    private readonly ObjectStore _store;
    private readonly CancellationTokenSource _lost = new();
    private readonly CancellationTokenSource _end = new();
    private readonly SemaphoreSlim _one = new(1);
    private Task _renewal = Task.CompletedTask;

    // Under the semaphore.
    private string? _version;
    private long _count;

    private UploadLease(ObjectStore store, string id)
    {
        _store = store;
        Id = id;
    }

    public string Id { get; }

    /// <summary>Cancelled when the lease was lost: a collection took the upload for dead.</summary>
    public CancellationToken Lost => _lost.Token;

    private string Key => Prefix + Id;

    public static async Task<UploadLease> CreateAsync(ObjectStore store, CancellationToken cancellation)
    {
        var lease = new UploadLease(store, Guid.NewGuid().ToString("N"));
        await store.TryCreateAsync(lease.Key, lease.Content(), cancellation);
        lease._version = (await store.TryReadAsync(lease.Key, 1 << 16, cancellation))?.Version;
        lease._renewal = Task.Run(lease.RenewAsync, CancellationToken.None);
        return lease;
    }

    /// <summary>Renews it; false where it was lost. What was written before a renewal that succeeds is seen by every collection that removes what this upload counts on.</summary>
    public async Task<bool> TryRenewAsync(CancellationToken cancellation)
    {
        await _one.WaitAsync(cancellation);
        try
        {
            if (_version is null) return false;
            _version = await _store.TryReplaceAsync(Key, Content(), _version, cancellation);
            if (_version is null) await _lost.CancelAsync();
            return _version is not null;
        }
        finally
        {
            _one.Release();
        }
    }

    public async ValueTask DisposeAsync()
    {
        await _end.CancelAsync();
        await _renewal;
        try
        {
            await _store.DeleteAsync(Key, CancellationToken.None);
        }
        catch (GuestMemoryException)
        {
            // It ends by itself.
        }

        _end.Dispose();
        _lost.Dispose();
        _one.Dispose();
    }

    private byte[] Content() => Encoding.UTF8.GetBytes(string.Create(CultureInfo.InvariantCulture, $"{Environment.MachineName} {Environment.ProcessId} {_count++}\n"));

    private async Task RenewAsync()
    {
        try
        {
            while (true)
            {
                await Task.Delay(Lifetime / 20, _end.Token);
                try
                {
                    if (!await TryRenewAsync(_end.Token)) return;
                }
                catch (GuestMemoryException)
                {
                    // The store is away for a moment; the next turn tries again.
                }
            }
        }
        catch (OperationCanceledException)
        {
            // The upload has ended.
        }
    }
}
