using System.Security.Cryptography;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Store;

/// <summary>
/// A store in a directory, which several hosts may have mounted. An object is a file that is written beside its place, flushed, and
/// renamed; what replaces or removes one holds the lock of the store's file "lock" meanwhile.
/// </summary>
public sealed class DirectoryStore : ObjectStore
{
    private const string Beside = ".part";
    private const string LockName = "lock";
    private const uint ReadWriteOfOwner = 0b110_000_000;
    private const uint DirectoryOfOwner = 0b111_000_000;
    private const uint ReadByOthers = 0b000_100_100;
    private const uint SearchByOthers = 0b000_101_101;

    private readonly string _root;

    /// <param name="path">The directory. It is made with the first object, for its owner alone; where it may be read by others, so may the objects.</param>
    public DirectoryStore(string path) => _root = Path.GetFullPath(path);

    /// <inheritdoc/>
    public override string Location => _root;

    /// <inheritdoc/>
    public override ValueTask ReadAsync(string key, long offset, Memory<byte> destination, CancellationToken cancellation = default)
    {
        cancellation.ThrowIfCancellationRequested();
        return Guarded(key, () =>
        {
            using var file = File.OpenHandle(PathOf(key));
            for (var done = 0; done < destination.Length;)
            {
                cancellation.ThrowIfCancellationRequested();
                var count = RandomAccess.Read(file, destination.Span[done..], offset + done);
                if (count == 0) throw new GuestMemoryException(GuestMemoryError.ObjectNotFound, $"{key} in {_root} has no bytes from {offset + done} on.");
                done += count;
            }

            return ValueTask.CompletedTask;
        });
    }

    /// <inheritdoc/>
    public override ValueTask<StoredObject?> TryReadAsync(string key, int limit, CancellationToken cancellation = default)
    {
        cancellation.ThrowIfCancellationRequested();
        return ValueTask.FromResult(Guarded(key, () => TryRead(key, limit)));
    }

    /// <inheritdoc/>
    public override ValueTask<bool> TryCreateAsync(string key, ReadOnlyMemory<byte> content, CancellationToken cancellation = default)
    {
        cancellation.ThrowIfCancellationRequested();
        return ValueTask.FromResult(Guarded(key, () =>
        {
            var path = PathOf(key);
            return !File.Exists(path) && Write(path, content.Span, overwrite: false);
        }));
    }

    /// <inheritdoc/>
    public override ValueTask<string?> TryReplaceAsync(string key, ReadOnlyMemory<byte> content, string version, CancellationToken cancellation = default)
    {
        cancellation.ThrowIfCancellationRequested();
        return ValueTask.FromResult(Guarded(key, () =>
        {
            using var held = Lock(cancellation);
            return TryRead(key, int.MaxValue)?.Version == version && Write(PathOf(key), content.Span, overwrite: true) ? VersionOf(content.Span) : null;
        }));
    }

    /// <inheritdoc/>
    public override ValueTask DeleteAsync(string key, CancellationToken cancellation = default)
    {
        cancellation.ThrowIfCancellationRequested();
        return Guarded(key, () =>
        {
            using var held = Lock(cancellation);
            try
            {
                File.Delete(PathOf(key));
            }
            catch (DirectoryNotFoundException)
            {
                // It is not there.
            }

            return ValueTask.CompletedTask;
        });
    }

    /// <inheritdoc/>
    public override ValueTask<IReadOnlyList<ObjectEntry>> ListAsync(string prefix, CancellationToken cancellation = default)
    {
        cancellation.ThrowIfCancellationRequested();
        return ValueTask.FromResult(Guarded<IReadOnlyList<ObjectEntry>>(prefix, () =>
        {
            var folder = prefix.LastIndexOf('/') is var at and >= 0 ? PathOf(prefix[..at]) : _root;
            var entries = new List<ObjectEntry>();
            // What cannot be read must not look like what is not there: a collection would take it for that.
            FileInfo[] files;
            try
            {
                files = new DirectoryInfo(folder).GetFiles("*", new EnumerationOptions { RecurseSubdirectories = true, AttributesToSkip = FileAttributes.ReparsePoint, IgnoreInaccessible = false });
            }
            catch (DirectoryNotFoundException) when (FileStatus.TryGet(folder, out _) == Errno.ENOENT)
            {
                return entries;
            }

            foreach (var file in files)
            {
                cancellation.ThrowIfCancellationRequested();
                var key = Path.GetRelativePath(_root, file.FullName);
                if (!key.StartsWith(prefix, StringComparison.Ordinal) || file.Name.EndsWith(Beside, StringComparison.Ordinal) || file.Name == LockName) continue;
                try
                {
                    entries.Add(new ObjectEntry(key, file.Length, new DateTimeOffset(file.LastWriteTimeUtc)));
                }
                catch (FileNotFoundException)
                {
                    // It was removed meanwhile.
                }
            }

            entries.Sort(static (left, right) => string.CompareOrdinal(left.Key, right.Key));
            return entries;
        }));
    }

    /// <inheritdoc/>
    public override ValueTask<DateTimeOffset> GetTimeAsync(CancellationToken cancellation = default)
    {
        cancellation.ThrowIfCancellationRequested();
        // The files' times may be another host's, which has the disk.
        return ValueTask.FromResult(Guarded(LockName, () =>
        {
            MakeDirectory(_root);
            var path = Path.Combine(_root, $".{Guid.NewGuid():N}{Beside}");
            File.WriteAllBytes(path, [0]);
            var time = new DateTimeOffset(File.GetLastWriteTimeUtc(path), TimeSpan.Zero);
            File.Delete(path);
            return time;
        }));
    }

    /// <inheritdoc/>
    public override ValueTask RemoveLeftoversAsync(DateTimeOffset before, CancellationToken cancellation = default)
    {
        cancellation.ThrowIfCancellationRequested();
        return Guarded("", () =>
        {
            // Nothing but what a store has: the directory may have been made for something else.
            foreach (var folder in new[] { "images", "packs", "index", "uploads", "pending", "doomed" }.Select(name => Path.Combine(_root, name)).Where(Directory.Exists))
            {
                foreach (var path in Directory.EnumerateFiles(folder, $".*{Beside}", SearchOption.AllDirectories))
                {
                    cancellation.ThrowIfCancellationRequested();
                    if (Guid.TryParseExact(Path.GetFileName(path)[1..^Beside.Length], "N", out _) && File.GetLastWriteTimeUtc(path) < before.UtcDateTime) File.Delete(path);
                }
            }

            return ValueTask.CompletedTask;
        });
    }

    private StoredObject? TryRead(string key, int limit)
    {
        try
        {
            using var file = File.OpenHandle(PathOf(key));
            var length = RandomAccess.GetLength(file);
            if (length > limit) throw new GuestMemoryException(GuestMemoryError.InvalidImage, $"{key} in {_root} has {length} bytes, more than the {limit} that such an object may have.");
            var content = new byte[length];
            for (var done = 0; done < content.Length;)
            {
                var count = RandomAccess.Read(file, content.AsSpan(done), done);
                if (count == 0) throw new EndOfStreamException($"{PathOf(key)} became shorter while it was read.");
                done += count;
            }

            return new StoredObject(content, VersionOf(content));
        }
        catch (Exception exception) when (exception is FileNotFoundException or DirectoryNotFoundException)
        {
            return null;
        }
    }

    private bool Write(string path, ReadOnlySpan<byte> content, bool overwrite)
    {
        var folder = Path.GetDirectoryName(path)!;
        MakeDirectory(folder);
        var beside = Path.Combine(folder, $".{Guid.NewGuid():N}{Beside}");
        try
        {
            using (var file = new FileStream(beside, OfOwner(FileMode.CreateNew)))
            {
                file.Write(content);
                if ((ModeOfRoot() & ReadByOthers) is var others and not 0) ChangeMode(beside, ReadWriteOfOwner | others);
                // A name must never stand for a part of an object, also after the host has crashed.
                file.Flush(flushToDisk: true);
            }

            if (overwrite)
            {
                File.Move(beside, path, overwrite: true);
                return true;
            }

            // Of two that do so at once one makes it; a rename would let the second replace the first.
            var error = FileStatus.TryLink(beside, path);
            File.Delete(beside);
            return error switch
            {
                0 => true,
                Errno.EEXIST => false,
                _ => throw new SyscallException("link", error, $"Making {path}"),
            };
        }
        catch
        {
            File.Delete(beside);
            throw;
        }
    }

    private static FileStreamOptions OfOwner(FileMode mode) =>
#pragma warning disable CA1416 // This library is for Linux.
        new() { Mode = mode, Access = FileAccess.ReadWrite, Share = FileShare.None, BufferSize = 0, UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite };
#pragma warning restore CA1416

    private void MakeDirectory(string folder)
    {
        if (Directory.Exists(folder)) return;
        if (folder != _root && Path.GetDirectoryName(folder) is { } above) MakeDirectory(above);
        else Directory.CreateDirectory(Path.GetDirectoryName(folder) ?? "/");
        var mode = folder == _root ? DirectoryOfOwner : DirectoryOfOwner | (ModeOfRoot() & SearchByOthers);
        if (FileStatus.TryMakeDirectory(folder, mode) is var error and not (0 or Errno.EEXIST)) throw new SyscallException("mkdir", error, $"Making the directory {folder}");
        // The process's mask took bits away.
        if (folder != _root) ChangeMode(folder, mode);
    }

    private static string VersionOf(ReadOnlySpan<byte> content) => Convert.ToHexStringLower(SHA256.HashData(content));

    private uint ModeOfRoot() => FileStatus.TryGet(_root, out var status, follow: true) == 0 ? status.stx_mode : 0u;

    private static void ChangeMode(string path, uint mode)
    {
        if (FileStatus.TryChangeMode(path, mode) is var error and not 0) throw new SyscallException("chmod", error, $"Keeping {path} from other users");
    }

    /// <summary>The store's lock, held until it is disposed of. The kernel gives it up with the process.</summary>
    private FileStream Lock(CancellationToken cancellation)
    {
        MakeDirectory(_root);
        while (true)
        {
            cancellation.ThrowIfCancellationRequested();
            try
            {
                return new FileStream(Path.Combine(_root, LockName), OfOwner(FileMode.OpenOrCreate));
            }
            catch (IOException exception) when (exception.HResult == Errno.EAGAIN)
            {
                // Another process, or another thread, has it for a moment.
                cancellation.WaitHandle.WaitOne(1);
            }
        }
    }

    private string PathOf(string key)
    {
        foreach (var part in key.Split('/'))
        {
            if (part is "" or "." or ".." || part.Contains('\0', StringComparison.Ordinal)) throw new ArgumentException($"'{key}' is not a key.", nameof(key));
        }

        return Path.Combine(_root, key);
    }

    private T Guarded<T>(string key, Func<T> work)
    {
        try
        {
            return work();
        }
        catch (Exception exception) when (exception is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new GuestMemoryException(GuestMemoryError.ObjectNotFound, $"{key} is not in the store {_root}.", exception);
        }
        catch (UnauthorizedAccessException exception)
        {
            throw new GuestMemoryException(GuestMemoryError.StoreDenied, $"This user may not access {key} in the store {_root}: {exception.Message}", exception);
        }
        catch (IOException exception)
        {
            throw new GuestMemoryException(GuestMemoryError.StoreFailed, $"{key} in the store {_root} could not be accessed: {exception.Message}", exception);
        }
    }
}
