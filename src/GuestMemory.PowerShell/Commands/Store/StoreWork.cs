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
        while (Task.WaitAny([task], 100) < 0) bar.Report(counter.Value);
        bar.Complete();
        return task.GetAwaiter().GetResult();
    }

    /// <summary>The image that a text names; a directory may be relative to the session's location.</summary>
    public static StoreLocation Locate(string text, Func<string, string> resolve)
    {
        var location = StoreLocation.Parse(text);
        return location.Store.Contains("://", StringComparison.Ordinal) ? location : location with { Store = resolve(location.Store) };
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
            if (key.KeySize == 256 && (!isPrivate || HasPrivateKey(key))) return key;
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
