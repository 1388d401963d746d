using System.Runtime.CompilerServices;

namespace GuestMemory.Core;

/// <content>Access that may have to wait for a page, and can be left.</content>
public sealed partial class GuestMemoryMmap
{
    // So small that it is copied either directly or by the kernel, as a whole.
    private const int Piece = (int)VolatileCopy.Piece;

    /// <summary>Whether an access to a range may have to wait: a page-fault handler or another process lies behind a region of it.</summary>
    internal bool MayWait(GuestAddress address, ulong size)
    {
        if (size == 0) return false;
        var last = address.CheckedAdd(size - 1)?.Value ?? ulong.MaxValue;
        foreach (var region in _regions)
        {
            if (region.GuestAddress <= last && region.LastAddress >= address.Value && region.Memory.MayWait) return true;
        }

        return false;
    }

    /// <summary>
    /// Reads exactly as many bytes as the buffer has; where a page-fault handler may make it wait, on a thread of its own that is abandoned
    /// when the token says so. The buffer must not be used again after that.
    /// </summary>
    /// <exception cref="OperationCanceledException">The token was cancelled; the read may still be waiting for its page.</exception>
    /// <exception cref="GuestMemoryException">As without a token, and HandlerGone: a page is missing and its handler has hung up.</exception>
    public void ReadExact(GuestAddress address, Memory<byte> destination, CancellationToken cancellation) =>
        ThrowIfPartial(address, (ulong)destination.Length, (ulong)Stoppable(address, destination.Length, Reader(destination), cancellation), "read");

    /// <summary>Writes all the bytes; abandoned like <see cref="ReadExact(GuestAddress, Memory{byte}, CancellationToken)"/>.</summary>
    /// <exception cref="OperationCanceledException">The token was cancelled; the write may still be waiting for its page.</exception>
    public void WriteExact(GuestAddress address, ReadOnlyMemory<byte> source, CancellationToken cancellation) =>
        ThrowIfPartial(address, (ulong)source.Length, (ulong)Stoppable(address, source.Length, Writer(source), cancellation), "written");

    /// <summary>
    /// Gives the pages of a range back to the host, as a balloon does (Firecracker's discard_range); it may span regions. Where a
    /// page-fault handler serves the memory this waits until the handler has taken note, on a thread of its own that is abandoned
    /// when the token says so.
    /// </summary>
    /// <param name="address">The first guest address; like the size a multiple of the regions' page size.</param>
    /// <param name="size">The bytes.</param>
    /// <param name="cancellation">Ends the wait.</param>
    /// <exception cref="GuestMemoryException">
    /// InvalidGuestAddress, GuestAddressOverflow, HostAddressNotAvailable (a region is no mapping): nothing was given back; HandlerGone.
    /// </exception>
    public void Discard(GuestAddress address, ulong size, CancellationToken cancellation = default)
    {
        RequireRange(address, size);
        var parts = new List<(MmapRegion Mapping, ulong Offset, ulong Size)>();
        for (ulong done = 0; done < size;)
        {
            var region = FindRegion(new GuestAddress(address.Value + done))!;
            var offset = address.Value + done - region.GuestAddress;
            var part = Math.Min(size - done, region.Size - offset);
            parts.Add((region.GetMmapRegion(), offset, part));
            done += part;
        }

        BlockingAccess.Run(progress =>
        {
            foreach (var part in parts)
            {
                if (cancellation.IsCancellationRequested) break;
                part.Mapping.Discard(part.Offset, part.Size);
                Volatile.Write(ref progress.Value, progress.Value + 1);
            }

            return 0;
        }, Orphaned, cancellation);
    }

    private Func<GuestAddress, int, int, int> Reader(Memory<byte> destination) => (at, from, length) => Read(at, destination.Span.Slice(from, length));

    private Func<GuestAddress, int, int, int> Writer(ReadOnlyMemory<byte> source) => (at, from, length) => Write(at, source.Span.Slice(from, length));

    /// <summary>Runs an access piece by piece; where it may have to wait on a thread of its own, which the token abandons.</summary>
    private int Stoppable(GuestAddress address, int length, Func<GuestAddress, int, int, int> access, CancellationToken cancellation)
    {
        // A handler may come to lie behind the memory at any time: what is left then is for a thread of its own.
        var done = Pieces(address, 0, length, access, null, cancellation);
        if (done < length && MayWait(address, (ulong)length)) done = BlockingAccess.Run(progress => Pieces(address, done, length, access, progress, cancellation), Orphaned, cancellation);
        if (done < length) cancellation.ThrowIfCancellationRequested();
        return done;
    }

    /// <summary>Goes on from <paramref name="done"/>; without a place to tell how far it has come only as long as no access may have to wait.</summary>
    private int Pieces(GuestAddress address, int done, int length, Func<GuestAddress, int, int, int> access, StrongBox<long>? progress, CancellationToken cancellation)
    {
        while (done < length && !cancellation.IsCancellationRequested && (progress is not null || !MayWait(address, (ulong)length)))
        {
            var at = address.CheckedAdd((ulong)done) ?? throw Overflow(address, (ulong)length);
            if (done > 0 && FindRegion(at) is null) break;
            done += access(at, done, Math.Min(Piece, length - done));
            if (progress is not null) Volatile.Write(ref progress.Value, done);
        }

        return done;
    }

    /// <summary>Why a page will never come, or null.</summary>
    private GuestMemoryException? Orphaned() => Array.Find(_regions, static region => region.Memory.GoneHolder is not null) is { } orphan
        ? new GuestMemoryException(GuestMemoryError.HandlerGone,
            $"A page of region '{orphan.Name}' is missing, and {orphan.Memory.GoneHolder} has closed the connection: it ended, or it refused the hand-over because the memory does not fit its image (its Error says which). Remove the region by force, and connect fresh memory.")
        : null;
}
