namespace GuestMemory.Core.Store;

/// <summary>
/// Objects by key, in a place that many hosts may share: what an S3 bucket, a directory and a web server have in common. Keys are
/// names joined by '/'. An object comes whole or not at all, and an operation that follows another one sees what that did. For any thread.
/// </summary>
public abstract class ObjectStore : IDisposable
{
    /// <summary>Where it is, as an admin writes it.</summary>
    public abstract string Location { get; }

    /// <summary>Reads a part of an object.</summary>
    /// <param name="key">The key.</param>
    /// <param name="offset">The first byte, from 0 on.</param>
    /// <param name="destination">Filled whole.</param>
    /// <param name="cancellation">Abandons it.</param>
    /// <exception cref="GuestMemoryException">ObjectNotFound: there is none, or it is shorter. StoreFailed, StoreDenied.</exception>
    public abstract ValueTask ReadAsync(string key, long offset, Memory<byte> destination, CancellationToken cancellation = default);

    /// <summary>Reads a whole object; null where there is none.</summary>
    /// <param name="key">The key.</param>
    /// <param name="limit">The most bytes that it may have.</param>
    /// <param name="cancellation">Abandons it.</param>
    /// <exception cref="GuestMemoryException">InvalidImage: it is larger than the limit. StoreFailed, StoreDenied.</exception>
    public abstract ValueTask<StoredObject?> TryReadAsync(string key, int limit, CancellationToken cancellation = default);

    /// <summary>Makes an object that was not there; false where one is.</summary>
    /// <exception cref="GuestMemoryException">StoreFailed, StoreDenied.</exception>
    public abstract ValueTask<bool> TryCreateAsync(string key, ReadOnlyMemory<byte> content, CancellationToken cancellation = default);

    /// <summary>Replaces an object that is still as it was read, and returns its new version; null where it is another one by now, or gone.</summary>
    /// <param name="key">The key.</param>
    /// <param name="content">What it holds from now on.</param>
    /// <param name="version">The version that was read.</param>
    /// <param name="cancellation">Abandons it.</param>
    /// <exception cref="GuestMemoryException">StoreFailed, StoreDenied.</exception>
    public abstract ValueTask<string?> TryReplaceAsync(string key, ReadOnlyMemory<byte> content, string version, CancellationToken cancellation = default);

    /// <summary>Removes an object; nothing happens where there is none.</summary>
    /// <exception cref="GuestMemoryException">StoreFailed, StoreDenied.</exception>
    public abstract ValueTask DeleteAsync(string key, CancellationToken cancellation = default);

    /// <summary>The objects whose keys begin with a prefix, in ascending order of the keys.</summary>
    /// <exception cref="GuestMemoryException">StoreFailed, StoreDenied.</exception>
    public abstract ValueTask<IReadOnlyList<ObjectEntry>> ListAsync(string prefix, CancellationToken cancellation = default);

    /// <summary>The time of the store's own clock, which the times of its objects are of.</summary>
    /// <exception cref="GuestMemoryException">StoreFailed, StoreDenied.</exception>
    public abstract ValueTask<DateTimeOffset> GetTimeAsync(CancellationToken cancellation = default);

    /// <summary>Removes what writers that died have left behind, which is in no listing.</summary>
    /// <param name="before">What was written after that stays: its writer may live.</param>
    /// <param name="cancellation">Abandons it.</param>
    /// <exception cref="GuestMemoryException">StoreFailed, StoreDenied.</exception>
    public abstract ValueTask RemoveLeftoversAsync(DateTimeOffset before, CancellationToken cancellation = default);

    /// <inheritdoc/>
    public void Dispose()
    {
        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    /// <summary>Frees what it holds.</summary>
    protected virtual void Dispose(bool disposing)
    {
    }
}

/// <summary>An object that was read.</summary>
/// <param name="Content">Its bytes.</param>
/// <param name="Version">Stands for this content of it (an ETag).</param>
public sealed record StoredObject(byte[] Content, string Version);

/// <summary>An object of a listing.</summary>
/// <param name="Key">Its key.</param>
/// <param name="Size">Its bytes.</param>
/// <param name="Modified">When it was written, by the store's clock.</param>
public readonly record struct ObjectEntry(string Key, long Size, DateTimeOffset Modified);
