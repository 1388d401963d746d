using System.Security.Cryptography;
using GuestMemory.Core;
using GuestMemory.Core.Store;

namespace GuestMemory.PowerShell.Commands;

/// <summary>What the cmdlets of stores have in common: work off the pipeline's thread, places, and keys.</summary>
internal static class StoreWork
{
    /// <summary>Waits for work, and shows its progress, which only the pipeline's thread may.</summary>
    public static T Wait<T>(ProgressBar bar, Func<IProgress<ulong>, Task<T>> start)
    {
        var counter = new Counter();
        var task = start(counter);
        try
        {
            while (Task.WaitAny([task], 100) < 0) bar.Report(counter.Value);
        }
        catch
        {
            // Ctrl+C, which ends the work too: it uses what the caller frees now.
            task.ContinueWith(static _ => { }, CancellationToken.None, TaskContinuationOptions.None, TaskScheduler.Default).Wait();
            throw;
        }

        bar.Complete();
        return task.GetAwaiter().GetResult();
    }

    /// <summary>The image that a text names; a directory may be relative to the session's location.</summary>
    public static StoreLocation Locate(string text, Func<string, string> resolve)
    {
        var location = StoreLocation.Parse(text);
        return location.Store.Contains("://", StringComparison.Ordinal) ? location : location with { Store = resolve(location.Store) };
    }

    /// <summary>Refuses a directory that is no store, where nothing of the kind is to be made.</summary>
    public static void RequireStore(string location)
    {
        if (location.Contains("://", StringComparison.Ordinal)) return;
        if (!Directory.Exists(location)) throw new DirectoryNotFoundException($"There is no directory {location}.");
        if (!Directory.Exists(Path.Combine(location, "images")) && !Directory.Exists(Path.Combine(location, "packs")))
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"{location} is no store of images: it has no directory 'images'.");
    }

    /// <summary>The image of a store that a text names, where it does not name a file; null where it does.</summary>
    public static StoreLocation? FindImage(string text, Func<string, string> resolve)
    {
        if (text.Contains("://", StringComparison.Ordinal)) return StoreLocation.Parse(text);
        var path = resolve(text);
        return !File.Exists(path) && path.LastIndexOf('/') is var at and > 0 && Directory.Exists(Path.Combine(path[..at], "images"))
            ? StoreLocation.Parse(path) : null;
    }

    /// <summary>Opens an image, which one of the keys must have signed where any are given.</summary>
    public static ImageManifest Open(ImageStore store, StoreLocation location, string[] trustedKeys, Func<string, string> resolve, CancellationToken cancellation)
    {
        var keys = new List<ECDsa>();
        try
        {
            foreach (var path in trustedKeys) keys.Add(ReadKey(resolve(path), isPrivate: false));
            return store.OpenAsync(location.Name, location.Generation, keys.Count == 0 ? null : keys, cancellation).GetAwaiter().GetResult();
        }
        finally
        {
            foreach (var key in keys) key.Dispose();
        }
    }

    /// <summary>Reads keys in PEM files.</summary>
    /// <exception cref="GuestMemoryException">InvalidKey.</exception>
    public static ECDsa ReadKey(string path, bool isPrivate)
    {
        var text = File.ReadAllText(path);
        var key = ECDsa.Create();
        try
        {
            key.ImportFromPem(text);
            if (key.ExportParameters(includePrivateParameters: false).Curve.Oid.Value == "1.2.840.10045.3.1.7" && (!isPrivate || HasPrivateKey(key))) return key;
        }
        catch (Exception exception) when (exception is ArgumentException or CryptographicException)
        {
            key.Dispose();
            throw Invalid(exception);
        }

        key.Dispose();
        throw Invalid(null);

        GuestMemoryException Invalid(Exception? exception) => new(GuestMemoryError.InvalidKey,
            $"{path} does not hold {(isPrivate ? "a private ECDSA key, without a password," : "an ECDSA key")} on the curve P-256 in PEM ('openssl ecparam -genkey -name prime256v1 -noout', 'openssl ec -pubout').", exception);
    }

    private static bool HasPrivateKey(ECDsa key)
    {
        try
        {
            return key.ExportParameters(includePrivateParameters: true).D is not null;
        }
        catch (CryptographicException)
        {
            return false;
        }
    }

    private sealed class Counter : IProgress<ulong>
    {
        private ulong _value;

        public ulong Value => Volatile.Read(ref _value);

        public void Report(ulong value) => Volatile.Write(ref _value, value);
    }
}
