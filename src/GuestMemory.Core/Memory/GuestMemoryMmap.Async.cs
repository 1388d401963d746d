using System.Buffers;

namespace GuestMemory.Core;

/// <content>
/// Asynchronous access. Memory that is simply there is accessed at once, and the task is complete on return. What may have to wait for a
/// page runs on a thread of its own; a token abandons it, and the caller's buffer is not used any more from then on.
/// </content>
public sealed partial class GuestMemoryMmap
{
    /// <summary>Reads bytes; the result is how many came before the first unmapped address.</summary>
    /// <param name="address">The first guest address.</param>
    /// <param name="destination">The buffer.</param>
    /// <param name="cancellation">Ends the read, also while it waits for a page. What came before is in the buffer.</param>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    /// <exception cref="GuestMemoryException">As <see cref="Read(GuestAddress, Span{byte})"/>; HandlerGone: a page is missing and its handler has hung up.</exception>
    public ValueTask<int> ReadAsync(GuestAddress address, Memory<byte> destination, CancellationToken cancellation = default)
    {
        try
        {
            cancellation.ThrowIfCancellationRequested();
            if (destination.Length <= Piece && !MayWait(address, (ulong)destination.Length)) return new ValueTask<int>(Read(address, destination.Span));
            var done = Pieces(address, 0, destination.Length, Reader(destination), null, cancellation);
            if (done == destination.Length) return new ValueTask<int>(done);
            cancellation.ThrowIfCancellationRequested();
            return MayWait(address, (ulong)destination.Length) ? new ValueTask<int>(WaitAsync(address, done, destination, cancellation)) : new ValueTask<int>(done);
        }
#pragma warning disable CA1031 // Every failure is the task's.
        catch (Exception exception)
        {
            return Failed(exception);
        }
#pragma warning restore CA1031
    }

    /// <summary>Writes bytes and marks them dirty; the result is how many went before the first unmapped address.</summary>
    /// <param name="address">The first guest address.</param>
    /// <param name="source">The bytes.</param>
    /// <param name="cancellation">Ends the write, also while it waits for a page. What went before is in the memory; a piece that waits may still follow.</param>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    /// <exception cref="GuestMemoryException">As <see cref="Write(GuestAddress, ReadOnlySpan{byte})"/>; HandlerGone: a page is missing and its handler has hung up.</exception>
    public ValueTask<int> WriteAsync(GuestAddress address, ReadOnlyMemory<byte> source, CancellationToken cancellation = default)
    {
        try
        {
            cancellation.ThrowIfCancellationRequested();
            if (source.Length <= Piece && !MayWait(address, (ulong)source.Length)) return new ValueTask<int>(Write(address, source.Span));
            var done = Pieces(address, 0, source.Length, Writer(source), null, cancellation);
            if (done == source.Length) return new ValueTask<int>(done);
            cancellation.ThrowIfCancellationRequested();
            return MayWait(address, (ulong)source.Length) ? new ValueTask<int>(WaitAsync(address, done, source, cancellation)) : new ValueTask<int>(done);
        }
#pragma warning disable CA1031 // Every failure is the task's.
        catch (Exception exception)
        {
            return Failed(exception);
        }
#pragma warning restore CA1031
    }

    /// <summary>Reads exactly as many bytes as the buffer has.</summary>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    /// <exception cref="GuestMemoryException">As <see cref="ReadAsync"/>, and PartialBuffer where the range runs into a hole.</exception>
    public ValueTask ReadExactAsync(GuestAddress address, Memory<byte> destination, CancellationToken cancellation = default) =>
        Whole(address, destination.Length, ReadAsync(address, destination, cancellation), "read");

    /// <summary>Writes all the bytes.</summary>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    /// <exception cref="GuestMemoryException">As <see cref="WriteAsync"/>, and PartialBuffer where the range runs into a hole.</exception>
    public ValueTask WriteExactAsync(GuestAddress address, ReadOnlyMemory<byte> source, CancellationToken cancellation = default) =>
        Whole(address, source.Length, WriteAsync(address, source, cancellation), "written");

    private static ValueTask<int> Failed(Exception exception) =>
        exception is OperationCanceledException cancelled ? ValueTask.FromCanceled<int>(cancelled.CancellationToken) : ValueTask.FromException<int>(exception);

    private async Task<int> WaitAsync(GuestAddress address, int done, Memory<byte> destination, CancellationToken cancellation)
    {
        var lent = new LentBuffer(destination.Length);
        return await WaitAsync(lent, address, done, destination.Length, (at, from, count) =>
        {
            var came = Read(at, lent.Buffer.AsSpan(0, count));
            lent.IfHeld(() => lent.Buffer.AsSpan(0, came).CopyTo(destination.Span[from..]));
            return came;
        }, cancellation).ConfigureAwait(false);
    }

    private async Task<int> WaitAsync(GuestAddress address, int done, ReadOnlyMemory<byte> source, CancellationToken cancellation)
    {
        var lent = new LentBuffer(source.Length);
        return await WaitAsync(lent, address, done, source.Length, (at, from, count) =>
            lent.IfHeld(() => source.Span.Slice(from, count).CopyTo(lent.Buffer)) ? Write(at, lent.Buffer.AsSpan(0, count)) : 0, cancellation).ConfigureAwait(false);
    }

    private async Task<int> WaitAsync(LentBuffer lent, GuestAddress address, int done, int length, Func<GuestAddress, int, int, int> access, CancellationToken cancellation)
    {
        try
        {
            done = await BlockingAccess.RunAsync(progress => Pieces(address, done, length, access, progress, cancellation), Orphaned, cancellation).ConfigureAwait(false);
            if (done < length) cancellation.ThrowIfCancellationRequested();
            lent.Return();
            return done;
        }
        catch
        {
            lent.Abandon();
            throw;
        }
    }

    private static ValueTask Whole(GuestAddress address, int length, ValueTask<int> access, string verb)
    {
        if (!access.IsCompletedSuccessfully) return new ValueTask(WaitAsync());
        if (access.Result is var done && done == length) return ValueTask.CompletedTask;
        return ValueTask.FromException(Partial(address, (ulong)length, (ulong)done, verb));

        async Task WaitAsync() => ThrowIfPartial(address, (ulong)length, (ulong)await access.ConfigureAwait(false), verb);
    }

    /// <summary>
    /// A buffer between the caller's and the access, which may outlive the call: an abandoned access touches nothing of the caller's.
    /// </summary>
    private sealed class LentBuffer(int length)
    {
        private readonly Lock _turn = new();
        private bool _abandoned;

        public byte[] Buffer { get; } = ArrayPool<byte>.Shared.Rent(Math.Min(length, Piece));

        /// <summary>Uses the caller's buffer, unless the caller has left.</summary>
        public bool IfHeld(Action use)
        {
            lock (_turn)
            {
                if (_abandoned) return false;
                use();
                return true;
            }
        }

        public void Return() => ArrayPool<byte>.Shared.Return(Buffer);

        /// <summary>The buffer stays the access's.</summary>
        public void Abandon()
        {
            lock (_turn) _abandoned = true;
        }
    }
}
