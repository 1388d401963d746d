namespace GuestMemory.Core.Tests;

/// <summary>Memory whose every copy waits until the test lets it go on, as one does for a page that no handler serves.</summary>
internal sealed class WaitingMemory(ulong size) : VolatileMemory(size)
{
    private readonly byte[] _bytes = new byte[size];
    private readonly SemaphoreSlim _begun = new(0);
    private readonly SemaphoreSlim _goOn = new(0);
    private readonly SemaphoreSlim _ended = new(0);

    /// <summary>The handler that has hung up, where the test says so.</summary>
    public string? Gone { get; set; }

    /// <summary>The name of the thread that the last access ran on.</summary>
    public string? Thread { get; private set; }

    public Span<byte> Bytes => _bytes;

    internal override string? GoneHolder => Gone;

    /// <summary>Waits until an access has begun.</summary>
    public void AwaitAccess() => _begun.Wait();

    /// <summary>Lets accesses go on.</summary>
    public void LetGo(int count = 1) => _goOn.Release(count);

    /// <summary>Waits until an access has ended.</summary>
    public void AwaitEnd() => _ended.Wait();

    protected override int ReadCore(ulong offset, Span<byte> buffer, out int error)
    {
        Wait();
        _bytes.AsSpan((int)offset, buffer.Length).CopyTo(buffer);
        _ended.Release();
        error = 0;
        return buffer.Length;
    }

    protected override int WriteCore(ulong offset, ReadOnlySpan<byte> buffer, out int error)
    {
        Wait();
        buffer.CopyTo(_bytes.AsSpan((int)offset));
        _ended.Release();
        error = 0;
        return buffer.Length;
    }

    private void Wait()
    {
        Thread = System.Threading.Thread.CurrentThread.Name;
        _begun.Release();
        _goOn.Wait();
    }
}
