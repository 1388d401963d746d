using System.Net;
using System.Net.Http.Headers;
using Polly;
using Polly.Retry;

namespace GuestMemory.Core.Store;

/// <summary>
/// A store that a web server publishes, to be read only: what a directory store holds, under an address. A server cannot list, so only images
/// whose names are known are found. What fails for a moment is tried again, with longer and longer pauses.
/// </summary>
public sealed class HttpStore : ObjectStore
{
    private static readonly SocketsHttpHandler s_handler = new()
    {
        // A name may stand for another address tomorrow.
        PooledConnectionLifetime = TimeSpan.FromMinutes(5),
        AutomaticDecompression = DecompressionMethods.None,
        ConnectTimeout = TimeSpan.FromSeconds(10),
    };

    private static readonly ResiliencePipeline s_again = new ResiliencePipelineBuilder().AddRetry(new RetryStrategyOptions
    {
        MaxRetryAttempts = 4,
        Delay = TimeSpan.FromMilliseconds(100),
        BackoffType = DelayBackoffType.Exponential,
        UseJitter = true,
        ShouldHandle = new PredicateBuilder().Handle<HttpRequestException>(static exception => exception.StatusCode is null or >= HttpStatusCode.InternalServerError or HttpStatusCode.TooManyRequests or HttpStatusCode.RequestTimeout)
            .Handle<IOException>().Handle<TimeoutException>(),
    }).Build();

    // Without a byte.
    private static readonly TimeSpan s_silence = TimeSpan.FromSeconds(30);

    private readonly HttpClient _client;
    private readonly Uri _root;

    /// <param name="address">The address of the store, http or https.</param>
    /// <exception cref="GuestMemoryException">ValueNotSupported: it is none, or holds a password, a query or a fragment.</exception>
    public HttpStore(string address)
        : this(address, s_handler)
    {
    }

    internal HttpStore(string address, HttpMessageHandler handler)
    {
        if (!Uri.TryCreate(address.TrimEnd('/') + "/", UriKind.Absolute, out var root) || root.Scheme is not ("http" or "https") || root.UserInfo.Length > 0 || root.Query.Length > 0 || root.Fragment.Length > 0)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "The address of a store is https://HOST/PATH, or http://HOST/PATH, without a user, a query or a fragment.");
        _root = root;
        _client = new HttpClient(handler, disposeHandler: false) { Timeout = Timeout.InfiniteTimeSpan };
    }

    /// <inheritdoc/>
    public override string Location => _root.ToString().TrimEnd('/');

    /// <inheritdoc/>
    public override async ValueTask ReadAsync(string key, long offset, Memory<byte> destination, CancellationToken cancellation = default) => await SendAsync(key, async silence =>
    {
        var token = silence.Token;
        using var request = new HttpRequestMessage(HttpMethod.Get, AddressOf(key));
        request.Headers.Range = new RangeHeaderValue(offset, offset + destination.Length - 1);
        using var response = await _client.SendAsync(request, HttpCompletionOption.ResponseHeadersRead, token);
        if (response.StatusCode is HttpStatusCode.NotFound or HttpStatusCode.Gone or HttpStatusCode.RequestedRangeNotSatisfiable)
            throw new GuestMemoryException(GuestMemoryError.ObjectNotFound, $"{key} is not in the store {Location}, or has no {destination.Length} bytes from {offset} on.");
        Require(response, key);
        // A server that knows no ranges sends everything, from the beginning on.
        var isPart = response.StatusCode == HttpStatusCode.PartialContent;
        if (isPart && response.Content.Headers.ContentRange?.From != offset)
            throw new GuestMemoryException(GuestMemoryError.StoreFailed, $"The store {Location} sent another part of {key} than the one that was asked for.");
        await using var stream = await response.Content.ReadAsStreamAsync(token);
        for (var skip = isPart ? 0 : offset; skip > 0;)
        {
            var count = await stream.ReadAsync(destination[..(int)Math.Min(skip, destination.Length)], token);
            if (count == 0) throw new GuestMemoryException(GuestMemoryError.ObjectNotFound, $"{key} in the store {Location} has no bytes from {offset} on.");
            skip -= count;
            silence.CancelAfter(s_silence);
        }

        var filled = 0;
        while (filled < destination.Length && await stream.ReadAsync(destination[filled..], token) is var count and > 0)
        {
            filled += count;
            silence.CancelAfter(s_silence);
        }

        if (filled < destination.Length)
            throw new GuestMemoryException(GuestMemoryError.ObjectNotFound, $"{key} in the store {Location} has only {offset + filled} bytes.");
        return 0;
    }, cancellation);

    /// <inheritdoc/>
    public override async ValueTask<StoredObject?> TryReadAsync(string key, int limit, CancellationToken cancellation = default) => await SendAsync(key, async silence =>
    {
        var token = silence.Token;
        using var response = await _client.GetAsync(AddressOf(key), HttpCompletionOption.ResponseHeadersRead, token);
        if (response.StatusCode is HttpStatusCode.NotFound or HttpStatusCode.Gone) return null;
        Require(response, key);
        await using var stream = await response.Content.ReadAsStreamAsync(token);
        using var content = new MemoryStream();
        var buffer = new byte[1 << 16];
        while (await stream.ReadAsync(buffer, token) is var count and > 0)
        {
            content.Write(buffer, 0, count);
            silence.CancelAfter(s_silence);
            if (content.Length > limit) throw new GuestMemoryException(GuestMemoryError.InvalidImage, $"{key} in the store {Location} has more than the {limit} bytes that such an object may have.");
        }

        if (response.Content.Headers.ContentLength is { } length && length != content.Length) throw new HttpIOException(HttpRequestError.ResponseEnded, $"{key} came with {content.Length} of {length} bytes.");
        return new StoredObject(content.ToArray(), response.Headers.ETag?.Tag ?? "");
    }, cancellation);

    /// <inheritdoc/>
    public override ValueTask<bool> TryCreateAsync(string key, ReadOnlyMemory<byte> content, CancellationToken cancellation = default) => throw ReadOnly();

    /// <inheritdoc/>
    public override ValueTask<string?> TryReplaceAsync(string key, ReadOnlyMemory<byte> content, string version, CancellationToken cancellation = default) => throw ReadOnly();

    /// <inheritdoc/>
    public override ValueTask DeleteAsync(string key, CancellationToken cancellation = default) => throw ReadOnly();

    /// <inheritdoc/>
    public override ValueTask<IReadOnlyList<ObjectEntry>> ListAsync(string prefix, CancellationToken cancellation = default) =>
        throw new GuestMemoryException(GuestMemoryError.StoreUnlisted, $"The images of {Location} cannot be listed: a web server says only what is at a known name.");

    /// <inheritdoc/>
    public override ValueTask<DateTimeOffset> GetTimeAsync(CancellationToken cancellation = default) => throw ReadOnly();

    /// <inheritdoc/>
    public override ValueTask RemoveLeftoversAsync(DateTimeOffset before, CancellationToken cancellation = default) => throw ReadOnly();

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing) _client.Dispose();
    }

    private Uri AddressOf(string key) => new(_root, string.Join('/', key.Split('/').Select(Uri.EscapeDataString)));

    private void Require(HttpResponseMessage response, string key)
    {
        if (response.StatusCode is HttpStatusCode.Unauthorized or HttpStatusCode.Forbidden)
            throw new GuestMemoryException(GuestMemoryError.StoreDenied, $"The store {Location} refuses to send {key} ({(int)response.StatusCode}).");
        response.EnsureSuccessStatusCode();
    }

    private async Task<T> SendAsync<T>(string key, Func<CancellationTokenSource, Task<T>> send, CancellationToken cancellation)
    {
        try
        {
            return await s_again.ExecuteAsync(async token =>
            {
                using var silence = CancellationTokenSource.CreateLinkedTokenSource(token);
                silence.CancelAfter(s_silence);
                try
                {
                    return await send(silence);
                }
                catch (OperationCanceledException exception) when (!token.IsCancellationRequested)
                {
                    // No answer, or no connection.
                    throw new TimeoutException("it does not answer", exception);
                }
            }, cancellation);
        }
        catch (Exception exception) when (exception is HttpRequestException or IOException or TimeoutException)
        {
            throw new GuestMemoryException(GuestMemoryError.StoreFailed, $"The store {Location} could not be asked for {key}: {exception.Message}", exception);
        }
    }

    private GuestMemoryException ReadOnly() => new(GuestMemoryError.StoreReadOnly, $"The store {Location} can only be read: it is what a web server publishes. Write to the directory or the bucket behind it.");
}
