using System.Diagnostics;
using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>The program vmm.c under the name of a VMM: its mappings are those of one, and nothing else is. It is a fake for the discovery alone.</summary>
public sealed class VmmFixture : IDisposable
{
    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    internal FakeVmm Start(string name, params string[] arguments)
    {
        var program = _folder[name];
        if (!File.Exists(program)) Compiler.Compile(Path.Combine(AppContext.BaseDirectory, "Processes", "vmm.c"), program);
        return new FakeVmm(program, arguments);
    }
}

/// <summary>A process of vmm.c.</summary>
internal sealed class FakeVmm : IDisposable
{
    private readonly Process _process;

    public FakeVmm(string program, string[] arguments)
    {
        _process = Process.Start(new ProcessStartInfo(program, arguments) { UseShellExecute = false, RedirectStandardInput = true, RedirectStandardOutput = true })!;
        while (ReadLine() is var line && line != "ready")
        {
            var numbers = line.Split(' ').Select(static text => ulong.Parse(text, CultureInfo.InvariantCulture)).ToArray();
            Parts.Add((numbers[0], numbers[1]));
        }
    }

    public int Id => _process.Id;

    /// <summary>Where its parts are, in the order of the arguments.</summary>
    public List<(ulong Address, ulong Size)> Parts { get; } = [];

    public bool Watch()
    {
        _process.StandardInput.Write("watch\n");
        _process.StandardInput.Flush();
        return ReadLine() == "ok";
    }

    public string Status(string field) => File.ReadLines($"/proc/{Id}/status").First(line => line.StartsWith(field + ":", StringComparison.Ordinal))[(field.Length + 1)..].Trim();

    public void Kill()
    {
        _process.Kill();
        if (!_process.WaitForExit(Host.Patience)) throw new TimeoutException($"Process {Id} was killed and has not ended.");
    }

    public void Dispose()
    {
        Kill();
        _process.Dispose();
    }

    private string ReadLine() => _process.StandardOutput.ReadLineAsync().WaitAsync(Host.Patience).GetAwaiter().GetResult() ?? throw new InvalidOperationException("vmm ended");
}
