using System.Collections.Concurrent;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Processes;

/// <summary>Looks at all pages at each query, by the process's pagemap, on all CPUs. Nothing of the process changes by that.</summary>
internal abstract class SampledDirtyTracker : ProcessDirtyTracker
{
    // Looked at by one thread at once.
    private const ulong LeastPiece = 2 << 20;

    // Between two looks at whether it is still wanted.
    private const int PiecesOfStep = 32;

    private readonly SafeFileHandle _pagemap;
    private readonly ConcurrentBag<ulong[]> _entries = [];

    protected SampledDirtyTracker(TrackedRange range, SafeFileHandle pagemap)
        : base(range)
    {
        _pagemap = pagemap;
        PieceSize = Math.Max(LeastPiece, PageSize);
        PieceCount = checked((int)((Size + PieceSize - 1) / PieceSize));
    }

    public sealed override bool IsExact => false;

    protected ulong PieceSize { get; }

    protected int PieceCount { get; }

    /// <summary>Makes a tracker of the process's pagemap and, where it needs one, another file of it, and begins; where that fails neither stays open.</summary>
    /// <param name="range">What is tracked.</param>
    /// <param name="other">The name of the other file; null for none.</param>
    /// <param name="access">What is done with that.</param>
    /// <param name="make">Makes the tracker, which owns both from then on.</param>
    /// <param name="begin">Has it look for the first time.</param>
    private protected static T Begin<T>(TrackedRange range, string? other, FileAccess access, Func<SafeFileHandle, SafeFileHandle?, T> make, Action<T> begin)
        where T : SampledDirtyTracker
    {
        var pagemap = Open(range, "pagemap", FileAccess.Read);
        SafeFileHandle? file = null;
        try
        {
            file = other is null ? null : Open(range, other, access);
            var tracker = make(pagemap, file);
            begin(tracker);
            return tracker;
        }
        catch
        {
            pagemap.Dispose();
            file?.Dispose();
            throw;
        }
    }

    private static SafeFileHandle Open(TrackedRange range, string name, FileAccess access)
    {
        var file = ProcessFile.Open(range.ProcessId, name, path => File.OpenHandle(path, FileMode.Open, access, FileShare.ReadWrite));
        // The number is that of the same process still.
        if (!Pidfd.HasEnded(range.Process)) return file;
        file.Dispose();
        throw ProcessFile.NotFound(range.ProcessId);
    }

    /// <summary>Looks for the first time: what is there is what later queries compare with.</summary>
    protected void LookFirst(Action<ulong>? progress, CancellationToken cancellation)
    {
        Find(clear: false, progress, cancellation);
        Found.Reset();
    }

    /// <summary>Marks what has changed in some pages; false where the process has no memory any more. Called on several threads, for a piece on one.</summary>
    /// <param name="piece">The number of the piece.</param>
    /// <param name="address">The address of the first page.</param>
    /// <param name="entries">What pagemap says of each page.</param>
    protected abstract bool Examine(int piece, ulong address, ReadOnlySpan<ulong> entries);

    /// <summary>Makes pages clean that the source itself has marked.</summary>
    protected virtual void Clear()
    {
    }

    protected void Mark(ulong address) => Found.MarkDirty(address - Address, PageSize);

    private protected sealed override void Find(bool clear, Action<ulong>? progress, CancellationToken cancellation)
    {
        for (var first = 0; first < PieceCount; first += PiecesOfStep)
        {
            ThrowIfUnwanted(cancellation);
            var end = Math.Min(PieceCount, first + PiecesOfStep);
            var result = Parallel.For(first, end, (piece, state) =>
            {
                if (!Examine(piece)) state.Stop();
            });
            if (!result.IsCompleted) throw Ended();
            progress?.Invoke(Math.Min(Size, (ulong)end * PieceSize));
        }

        ThrowIfUnwanted(cancellation);
        RequireRange();
        if (clear) Clear();
    }

    private protected override void Release() => _pagemap.Dispose();

    private bool Examine(int piece)
    {
        var address = Address + ((ulong)piece * PieceSize);
        var count = (int)(Math.Min(PieceSize, Address + Size - address) / PageSize);
        if (!_entries.TryTake(out var buffer)) buffer = new ulong[PieceSize / PageSize];
        var entries = buffer.AsSpan(0, count);
        var isThere = true;
        // Of a huge page, what is said of its first part.
        if (PageSize == HostPage.Size) isThere = Pagemap.TryRead(_pagemap, address, entries) == count;
        for (var i = 0; PageSize != HostPage.Size && i < count && isThere; i++) isThere = Pagemap.TryRead(_pagemap, address + ((ulong)i * PageSize), entries.Slice(i, 1)) == 1;
        isThere = isThere && Examine(piece, address, entries);
        _entries.Add(buffer);
        return isThere;
    }

    /// <summary>A page that was unmapped is like one that went.</summary>
    private void RequireRange()
    {
        try
        {
            var mappings = ProcessMapping.GetAll(ProcessId).Where(mapping => mapping.End > Address);
            var isMapped = ProcessMapping.FindGap(mappings, Address) >= Address + Size;
            // Last: the mappings are those of whichever program the process runs by now.
            Span<ulong> entry = [0];
            if (Pagemap.TryRead(_pagemap, Address, entry) != 1) throw Ended();
            if (!isMapped) throw Unmapped();
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.ProcessNotFound)
        {
            throw Ended(exception);
        }
    }
}
