using System.Diagnostics;
using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>A process of tracked.c, which does what it is told.</summary>
internal sealed class TrackedProcess : IDisposable
{
    private readonly Process _process;

    public TrackedProcess(string program, string kind, int pages, params string[] options)
    {
        _process = Process.Start(new ProcessStartInfo(program, [kind, pages.ToString(CultureInfo.InvariantCulture), .. options])
        {
            UseShellExecute = false, RedirectStandardInput = true, RedirectStandardOutput = true,
        })!;
        var answer = ReadLine().Split(' ').Select(static text => ulong.Parse(text, CultureInfo.InvariantCulture)).ToArray();
        (Address, Size, PageSize) = (answer[0], answer[1], answer[2]);
    }

    public int Id => _process.Id;

    public ulong Address { get; }

    public ulong Size { get; }

    public ulong PageSize { get; }

    /// <summary>The state of the main thread: S (waits), R (runs), T (stopped), ...</summary>
    public char State => Status("State")[0];

    public int DescriptorCount => Directory.GetFiles($"/proc/{Id}/fd").Length;

    public bool IsWatched => File.ReadLines($"/proc/{Id}/smaps").Any(static line => line.StartsWith("VmFlags:", StringComparison.Ordinal) && line.Contains(" uw", StringComparison.Ordinal));

    public ProcessDirtyTracker Track(ProcessTrackingSource source = ProcessTrackingSource.Userfault) => ProcessDirtyTracker.Start(Id, Address, Size, source);

    public string Status(string field) => File.ReadLines($"/proc/{Id}/status").First(line => line.StartsWith(field + ":", StringComparison.Ordinal))[(field.Length + 1)..].Trim();

    public void Write(string line)
    {
        _process.StandardInput.Write(line + "\n");
        _process.StandardInput.Flush();
    }

    public string ReadLine() => ReadLineAsync().GetAwaiter().GetResult();

    public async Task<string> ReadLineAsync() => await _process.StandardOutput.ReadLineAsync().WaitAsync(Host.Patience) ?? throw new InvalidOperationException($"tracked ended: {_process.WaitForExit(1000)}");

    public string Ask(string line)
    {
        Write(line);
        return ReadLine();
    }

    public void Do(string line) => Assert.Equal("ok", Ask(line));

    /// <summary>Does what it is told, has no descriptor more than before, and is not traced.</summary>
    public void AssertUnharmed(int descriptors)
    {
        Do("w 0");
        // Where the tracing ends with its thread, the kernel takes a moment.
        Host.Until(() => Status("TracerPid") == "0");
        Assert.Equal(descriptors, DescriptorCount);
    }

    public void Kill()
    {
        _process.Kill();
        _process.WaitForExit();
    }

    public void Dispose()
    {
        Kill();
        _process.Dispose();
    }
}
