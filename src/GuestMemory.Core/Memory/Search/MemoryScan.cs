using GuestMemory.Core.Images;

namespace GuestMemory.Core;

/// <summary>
/// Work on all of a memory, on every CPU. The memory is cut into pieces; what the pieces give comes in the order of the addresses, while the
/// pieces behind are worked on. No more of them are begun than keep the CPUs busy, so that a slow caller costs no memory.
/// </summary>
internal static unsafe class MemoryScan
{
    /// <summary>What one task does at once, in bytes.</summary>
    public const int PieceSize = 4 << 20;

    /// <summary>What is looked at at once, in bytes: so little that a copy of it stays in a CPU's cache.</summary>
    public const int BlockSize = 256 << 10;

    /// <summary>How many results a piece gives before the caller has to take them.</summary>
    public const int MaxResults = 4096;

    /// <summary>The runs of addresses without a hole, in ascending order; regions that touch are one.</summary>
    public static List<(ulong Start, ulong Last)> Runs(GuestMemoryMmap memory)
    {
        var runs = new List<(ulong Start, ulong Last)>();
        foreach (var region in memory.Regions)
        {
            if (runs.Count > 0 && runs[^1].Last + 1 == region.GuestAddress) runs[^1] = (runs[^1].Start, region.LastAddress);
            else runs.Add((region.GuestAddress, region.LastAddress));
        }

        return runs;
    }

    /// <summary>The pieces of a run; they begin and end at multiples of their size.</summary>
    public static IEnumerable<(ulong Start, ulong End)> Pieces(ulong start, ulong last)
    {
        for (var at = start; ; at = (at | PieceSize - 1) + 1)
        {
            yield return (at, Math.Min(at | PieceSize - 1, last));
            if ((at | PieceSize - 1) >= last) yield break;
        }
    }

    /// <summary>Works on pieces.</summary>
    /// <param name="pieces">The pieces.</param>
    /// <param name="work">Gives the results of a piece, and of which part more are to come; null after the last.</param>
    /// <param name="done">Told each piece that is done, by the caller's thread.</param>
    /// <param name="cancellation">Ends it.</param>
    public static IEnumerable<TResult> Run<TPiece, TResult>(IEnumerable<TPiece> pieces, Func<TPiece, CancellationToken, (List<TResult> Results, TPiece? More)> work,
        Action<TPiece>? done, CancellationToken cancellation)
        where TPiece : class
    {
        // Ends what is under way when the caller wants no more.
        using var over = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        var running = new Queue<(TPiece Piece, Task<(List<TResult> Results, TPiece? More)> Task)>();
        try
        {
            using var next = pieces.GetEnumerator();
            var more = true;
            while (true)
            {
                while (more && running.Count < 2 * Environment.ProcessorCount && (more = next.MoveNext())) running.Enqueue((next.Current, Begin(next.Current)));
                if (running.Count == 0) yield break;
                var (piece, task) = running.Peek();
                while (true)
                {
                    var (results, rest) = Wait(task);
                    foreach (var result in results) yield return result;
                    if (rest is null) break;
                    task = Begin(rest);
                }

                running.Dequeue();
                done?.Invoke(piece);
            }
        }
        finally
        {
            over.Cancel();
            // None touches the memory when the caller goes on.
            foreach (var (_, task) in running) ((IAsyncResult)task).AsyncWaitHandle.WaitOne();
        }

        Task<(List<TResult> Results, TPiece? More)> Begin(TPiece piece) => Task.Run(() => work(piece, over.Token), CancellationToken.None);

        static (List<TResult> Results, TPiece? More) Wait(Task<(List<TResult> Results, TPiece? More)> task) => task.GetAwaiter().GetResult();
    }

    /// <summary>Whether a byte can be looked at where it lies.</summary>
    public static bool IsDirect(GuestMemoryMmap memory, ulong address) => memory.FindRegion(new GuestAddress(address)) is { Memory.IsDirect: true };

    /// <summary>
    /// Does a piece of work on a range, without holes, of at most half of <see cref="ImageBuffers.Size"/>: where it lies, or on a copy of it.
    /// </summary>
    /// <exception cref="GuestMemoryException">As for a read.</exception>
    public static void Use(GuestMemoryMmap memory, ulong address, int length, VolatileMemory.Use use, CancellationToken cancellation)
    {
        cancellation.ThrowIfCancellationRequested();
        if (memory.FindRegion(new GuestAddress(address)) is { } region && region.LastAddress - address >= (ulong)length - 1
            && region.Memory.TryUse(address - region.GuestAddress, length, use)) return;
        // A read that is abandoned keeps its buffer.
        var buffer = ImageBuffers.Get();
        // As far behind the begin of a page as what is copied, which the kernel copies several times quicker.
        var copy = ImageBuffers.Aligned(buffer).Slice((int)(address % HostPage.Size), length);
        memory.ReadExact(new GuestAddress(address), copy, cancellation);
        fixed (byte* bytes = copy.Span) use(bytes, length);
        ImageBuffers.Return(buffer);
    }
}
