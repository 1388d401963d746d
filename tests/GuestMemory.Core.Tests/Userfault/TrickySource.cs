namespace GuestMemory.Core.Tests;

/// <summary>Pages of which one raises an exception, or which come from a disk that answers when its gate opens.</summary>
internal sealed unsafe class TrickySource : PageSource
{
    public const int Pages = 64;

    private readonly byte[] _bytes = Bytes();
    private int _waiting;

    public int BadPage { get; init; } = -1;

    public string Exception { get; init; } = "";

    public ManualResetEventSlim? Gate { get; init; }

    /// <summary>The first of the pages that only the disk has; none where it is not said.</summary>
    public int ColdFrom { get; init; } = Pages;

    /// <summary>How many threads wait for the disk.</summary>
    public int Waiting => Volatile.Read(ref _waiting);

    public override string Name => "the tricky source";

    public override ulong Length => Pages * 4096;

    public override int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run)
    {
        if (offset / 4096 == (ulong)BadPage) throw Exception == nameof(GuestMemoryException) ? new GuestMemoryException(GuestMemoryError.ImageUnreadable, "as the test wants") : new InvalidOperationException("as the test wants");
        run = new PageRunData((byte*)System.Runtime.CompilerServices.Unsafe.AsPointer(ref _bytes[0]) + offset, length);
        return 0;
    }

    public override bool IsReady(ulong offset, ulong length) => Gate is null || Gate.IsSet || offset + length <= (ulong)ColdFrom * 4096;

    public override void Prepare(ulong offset, ulong length, PageScratch scratch)
    {
        if (Gate is null) return;
        Interlocked.Increment(ref _waiting);
        Gate.Wait();
        Interlocked.Decrement(ref _waiting);
    }

    public override void Dispose()
    {
    }

    private static byte[] Bytes()
    {
        var bytes = GC.AllocateArray<byte>(Pages * 4096, pinned: true);
        for (var i = 0; i < Pages; i++) TestFolder.Fill(bytes.AsSpan(i * 4096, 4096), i);
        return bytes;
    }
}
