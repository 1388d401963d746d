using System.Collections.Concurrent;
using System.IO.Hashing;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Processes;

/// <summary>Compares a hash of each page with the one before. See <see cref="ProcessTrackingSource.Compare"/>.</summary>
internal sealed class CompareDirtyTracker : SampledDirtyTracker
{
    private const int BufferSize = 256 << 10;

    private readonly SafeFileHandle _memory;
    private readonly ConcurrentBag<byte[]> _buffers = [];

    // 0: the page was not there. Null: no page of the piece was.
    private readonly UInt128[]?[] _hashes;

    private CompareDirtyTracker(TrackedRange range, SafeFileHandle pagemap, SafeFileHandle memory)
        : base(range, pagemap) => (_memory, _hashes) = (memory, new UInt128[]?[PieceCount]);

    public override ProcessTrackingSource Source => ProcessTrackingSource.Compare;

    public static CompareDirtyTracker Begin(TrackedRange range, Action<ulong>? progress, CancellationToken cancellation) =>
        Begin(range, "mem", FileAccess.Read, (pagemap, memory) => new CompareDirtyTracker(range, pagemap, memory!), tracker => tracker.LookFirst(progress, cancellation));

    protected override bool Examine(int piece, ulong address, ReadOnlySpan<ulong> entries)
    {
        if (_hashes[piece] is null && !entries.ContainsAnyInRange(Pagemap.Swapped, ulong.MaxValue)) return true;
        var hashes = _hashes[piece] ??= new UInt128[entries.Length];
        if (!_buffers.TryTake(out var buffer)) buffer = new byte[BufferSize];
        var isThere = true;
        for (var i = 0; i < entries.Length && isThere;)
        {
            // A page that was reclaimed while it was protected, or was never there: it has not changed, and reading it could bring it in.
            const ulong Kept = Pagemap.Swapped | Pagemap.Protected;
            if ((entries[i] & Kept) == Kept)
            {
                i++;
                continue;
            }

            if (entries[i] < Pagemap.Swapped)
            {
                Note(hashes, i, address, 0);
                i++;
                continue;
            }

            var most = Math.Min(entries.Length, i + Math.Max(1, BufferSize / (int)PageSize));
            var end = i + 1;
            while (end < most && entries[end] >= Pagemap.Swapped && (entries[end] & Kept) != Kept) end++;
            isThere = PageSize > BufferSize ? CompareLarge(hashes, i, address, buffer) : Compare(hashes, i, ref end, address, buffer);
            i = end;
        }

        _buffers.Add(buffer);
        return isThere;
    }

    private protected override void Release()
    {
        base.Release();
        _memory.Dispose();
    }

    /// <summary>Compares some pages, of which it may leave out the last ones; false where the process has no memory any more.</summary>
    private bool Compare(UInt128[] hashes, int first, ref int end, ulong address, byte[] buffer)
    {
        var size = (int)PageSize;
        var count = PositionedIo.TryRead(_memory, buffer.AsSpan(0, (end - first) * size), address + ((ulong)first * PageSize));
        if (count == 0) return false;
        var pages = count < 0 ? 0 : (int)count / size;
        for (var i = 0; i < pages; i++) Note(hashes, first + i, address, HashOf(XxHash128.HashToUInt128(buffer.AsSpan(i * size, size))));
        if (first + pages == end) return true;
        // It went meanwhile, or cannot be read: a file that became shorter, for example.
        Note(hashes, first + pages, address, 0);
        end = first + pages + 1;
        return true;
    }

    private bool CompareLarge(UInt128[] hashes, int page, ulong address, byte[] buffer)
    {
        var hash = new XxHash128();
        for (ulong done = 0; done < PageSize;)
        {
            var count = PositionedIo.TryRead(_memory, buffer, address + ((ulong)page * PageSize) + done);
            if (count == 0) return false;
            if (count < 0)
            {
                Note(hashes, page, address, 0);
                return true;
            }

            hash.Append(buffer.AsSpan(0, (int)Math.Min((ulong)count, PageSize - done)));
            done += (ulong)count;
        }

        Note(hashes, page, address, HashOf(hash.GetCurrentHashAsUInt128()));
        return true;
    }

    private static UInt128 HashOf(UInt128 hash) => hash == 0 ? 1 : hash;

    private void Note(UInt128[] hashes, int page, ulong address, UInt128 hash)
    {
        if (hashes[page] == hash) return;
        hashes[page] = hash;
        Mark(address + ((ulong)page * PageSize));
    }
}
