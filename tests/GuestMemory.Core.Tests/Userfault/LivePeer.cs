using System.Diagnostics;
using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>A process of live-peer.c, and what its memory must be at one instant.</summary>
internal sealed class LivePeer : IDisposable
{
    private readonly Process _process;
    private readonly LiveSteps _steps;

    public LivePeer(string program, string socket, int pages, params string[] options)
    {
        _steps = new LiveSteps(pages);
        _process = Process.Start(new ProcessStartInfo(program, [socket, pages.ToString(CultureInfo.InvariantCulture), .. options]) { UseShellExecute = false, RedirectStandardInput = true, RedirectStandardOutput = true })!;
    }

    public static string Compile(string output) => Compiler.Compile(Path.Combine(AppContext.BaseDirectory, "Userfault", "live-peer.c"), output);

    public int Id => _process.Id;

    public bool HasEnded => _process.HasExited;

    public void Kill()
    {
        _process.Kill();
        Assert.True(_process.WaitForExit(Host.Patience));
    }

    /// <summary>Has it do something; its threads' complete steps then.</summary>
    public ulong[] Do(string what)
    {
        _process.StandardInput.Write(what + "\n");
        _process.StandardInput.Flush();
        var line = _process.StandardOutput.ReadLineAsync().WaitAsync(Host.Patience).GetAwaiter().GetResult();
        return Array.ConvertAll((line ?? throw new InvalidOperationException("live-peer ended")).Split(' '), static text => LiveSteps.Of(ulong.Parse(text, CultureInfo.InvariantCulture)));
    }

    /// <summary>Waits until each thread has made so many further steps.</summary>
    public void AwaitSteps(ulong count)
    {
        var before = Do("steps");
        Host.Until(() => Do("steps") is var now && now[0] >= before[0] + count && now[1] >= before[1] + count);
    }

    /// <summary>Waits until both threads wait: each gives a page back, or touches one that is missing.</summary>
    public void AwaitStandstill()
    {
        ulong[] before = [0, 0];
        Host.Until(() =>
        {
            var now = Do("steps");
            var same = now.AsSpan().SequenceEqual(before);
            before = now;
            return same;
        });
    }

    /// <inheritdoc cref="LiveSteps.AssertInstant"/>
    public ulong[] AssertInstant(ReadOnlySpan<byte> image) => _steps.AssertInstant(image);

    public void Dispose()
    {
        if (!_process.HasExited) _process.Kill();
        _process.WaitForExit();
        _process.Dispose();
    }
}
