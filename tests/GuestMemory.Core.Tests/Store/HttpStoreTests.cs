using System.Diagnostics;
using GuestMemory.Core.Store;

namespace GuestMemory.Core.Tests;

public sealed class HttpStoreTests : IDisposable
{
    private readonly StoreFixture _store = new();

    public void Dispose() => _store.Dispose();

    [Fact]
    public async Task AnImageIsReadThroughAServerThatFailsNowAndThen()
    {
        int[] chunks = [1, 0, 2, 3];
        await _store.Publish(_store.Memory(chunks));
        using var server = new FaultyServer(_store.Root)
        {
            Fault = static (number, _, response) =>
            {
                switch (number % 4)
                {
                    case 0:
                        response.StatusCode = 503;
                        return true;
                    case 1:
                        // It ends in the middle.
                        response.ContentLength64 = 1000;
                        response.OutputStream.Write(new byte[10]);
                        response.Abort();
                        return true;
                    case 2:
                        response.StatusCode = 429;
                        return true;
                    default:
                        return false;
                }
            },
        };
        Assert.Equal(StoreFixture.Content(chunks, chunks.Length * StoreFixture.Chunk), await Load(server));
        Assert.InRange(server.Requests, 12, 20);
    }

    [Fact]
    public async Task AServerWithoutRangesWillDo()
    {
        int[] chunks = [1, 2, 3, 4];
        await _store.Publish(_store.Memory(chunks));
        using var server = new FaultyServer(_store.Root) { IsWithoutRanges = true };
        Assert.Equal(StoreFixture.Content(chunks, chunks.Length * StoreFixture.Chunk), await Load(server));
    }

    [Fact]
    public async Task AnotherPartThanAskedForIsRefused()
    {
        await _store.Publish(_store.Memory(1));
        using var server = new FaultyServer(_store.Root)
        {
            Fault = static (_, path, response) =>
            {
                if (!path.StartsWith("/packs", StringComparison.Ordinal)) return false;
                response.StatusCode = 206;
                response.Headers["Content-Range"] = "bytes 0-99/100";
                response.OutputStream.Write(new byte[100]);
                return true;
            },
        };
        Assert.Equal(GuestMemoryError.StoreFailed, (await Assert.ThrowsAsync<GuestMemoryException>(() => Load(server))).Error);
    }

    [Theory]
    [InlineData(403, GuestMemoryError.StoreDenied, 1)]
    [InlineData(401, GuestMemoryError.StoreDenied, 1)]
    [InlineData(404, GuestMemoryError.ImageNotFound, 1)]
    [InlineData(400, GuestMemoryError.StoreFailed, 1)]
    [InlineData(500, GuestMemoryError.StoreFailed, 5)]
    public async Task WhatAServerSaysIsAnError(int status, GuestMemoryError error, int requests)
    {
        using var server = new FaultyServer(_store.Root)
        {
            Fault = (_, _, response) =>
            {
                response.StatusCode = status;
                return true;
            },
        };
        Assert.Equal(error, (await Assert.ThrowsAsync<GuestMemoryException>(() => Load(server))).Error);
        Assert.Equal(requests, server.Requests);
    }

    [Fact]
    public async Task AnObjectThatIsTooLargeIsNotRead()
    {
        using var server = new FaultyServer(_store.Root)
        {
            Fault = static (_, _, response) =>
            {
                response.OutputStream.Write(new byte[1 << 20]);
                return true;
            },
        };
        Assert.Equal(GuestMemoryError.InvalidImage, (await Assert.ThrowsAsync<GuestMemoryException>(() => Load(server))).Error);
    }

    [Fact]
    public async Task AServerIsOnlyRead()
    {
        using var images = ImageStore.Open("http://127.0.0.1:9/store");
        Assert.Equal(GuestMemoryError.StoreReadOnly, (await Assert.ThrowsAsync<GuestMemoryException>(() => images.PublishAsync(_store.Memory(1), "web"))).Error);
        Assert.Equal(GuestMemoryError.StoreUnlisted, (await Assert.ThrowsAsync<GuestMemoryException>(async () =>
        {
            await foreach (var _ in images.ListAsync()) Assert.Fail("it lists");
        })).Error);
        Assert.Equal(GuestMemoryError.StoreFailed, (await Assert.ThrowsAsync<GuestMemoryException>(() => images.OpenAsync("web"))).Error);
    }

    [Theory]
    [InlineData("https://user:secret@host/store")]
    [InlineData("https://host/store?X-Amz-Signature=secret")]
    [InlineData("https://")]
    public void AnAddressHoldsNoSecret(string address)
    {
        var exception = Assert.Throws<GuestMemoryException>(() => ImageStore.Open(address));
        Assert.Equal(GuestMemoryError.ValueNotSupported, exception.Error);
        Assert.DoesNotContain("secret", exception.Message, StringComparison.Ordinal);
    }

    [NginxFact]
    public async Task ARealServerPublishesADirectory()
    {
        int[] chunks = [.. Enumerable.Range(0, 300)];
        await _store.Publish(_store.Memory(chunks));
        await _store.Publish(_store.Memory([.. chunks, 1000]));
        var port = FaultyServer.FreePort();
        var configuration = _store["nginx.conf"];
        await File.WriteAllTextAsync(configuration, $$"""
            daemon off; master_process off; pid {{_store["nginx.pid"]}}; error_log stderr;
            events {}
            http {
                access_log off;
                client_body_temp_path {{_store["b"]}}; proxy_temp_path {{_store["p"]}}; fastcgi_temp_path {{_store["f"]}}; uwsgi_temp_path {{_store["u"]}}; scgi_temp_path {{_store["s"]}};
                server { listen 127.0.0.1:{{port}}; root {{_store.Root}}; }
            }
            """);
        using var nginx = Process.Start(new ProcessStartInfo("nginx", ["-c", configuration]) { RedirectStandardError = true, UseShellExecute = false })!;
        try
        {
            using var client = new HttpClient();
            Host.Until(() =>
            {
                Assert.False(nginx.HasExited);
                try
                {
                    return client.GetAsync($"http://127.0.0.1:{port}/").Result.StatusCode != 0;
                }
                catch (AggregateException)
                {
                    return false;
                }
            });
            using var images = ImageStore.Open($"http://127.0.0.1:{port}");
            Assert.Equal(StoreFixture.Content([.. chunks, 1000], 301 * StoreFixture.Chunk), await Load(images, null));
            Assert.Equal(StoreFixture.Content(chunks, 300 * StoreFixture.Chunk), await Load(images, 1));
            Assert.True((await images.TestAsync(await images.OpenAsync("web"))).IsWhole);
            var found = new List<StoredImage>();
            await foreach (var image in images.ListAsync("web")) found.Add(image);
            Assert.Equal(2UL, Assert.Single(found).Generation);
            Assert.Equal(GuestMemoryError.ImageNotFound, (await Assert.ThrowsAsync<GuestMemoryException>(() => images.OpenAsync("none"))).Error);
            // A pack that was cut off.
            var pack = _store.Packs().MaxBy(static path => new FileInfo(path).Length)!;
            await using (var file = File.OpenWrite(pack)) file.SetLength(1000);
            Assert.NotEmpty((await images.TestAsync(await images.OpenAsync("web"))).Errors);
            Assert.Equal(GuestMemoryError.ObjectNotFound, (await Assert.ThrowsAsync<GuestMemoryException>(() => Load(images, null))).Error);
        }
        finally
        {
            nginx.Kill();
            await nginx.WaitForExitAsync();
        }
    }

    private async Task<byte[]> Load(FaultyServer server)
    {
        using var images = ImageStore.Open(server.Address);
        return await Load(images, null);
    }

    private async Task<byte[]> Load(ImageStore images, ulong? generation)
    {
        var path = _store[Guid.NewGuid().ToString("N")];
        await images.SaveAsync(await images.OpenAsync("web", generation), path);
        return await File.ReadAllBytesAsync(path);
    }
}
