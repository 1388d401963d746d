namespace GuestMemory.Fuzz;

/// <summary>The files of one run, in memory where the host has a folder there.</summary>
internal sealed class Files : IDisposable
{
    private static readonly string s_folder = Directory.Exists("/dev/shm") ? "/dev/shm" : Path.GetTempPath();

    private readonly string _prefix = Path.Combine(s_folder, $"guestmemory-fuzz-{Environment.ProcessId}-");
    private int _count;

    /// <summary>The path of a file that is not there yet.</summary>
    public string Next() => $"{_prefix}{_count++}";

    /// <summary>A file with a content.</summary>
    public string Write(ReadOnlySpan<byte> content)
    {
        var path = Next();
        File.WriteAllBytes(path, content);
        return path;
    }

    public void Dispose()
    {
        for (var i = 0; i < _count; i++) File.Delete($"{_prefix}{i}");
    }
}
