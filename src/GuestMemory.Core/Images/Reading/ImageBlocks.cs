using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Images;

/// <summary>
/// Memory in blocks that are compressed one by one. Whole blocks are unpacked where they are wanted; those of which a part was wanted last are kept.
/// For any thread.
/// </summary>
internal abstract class ImageBlocks
{
    private const int KeptBytes = 2 << 20;
    private const int MostKept = 32;

    private readonly Lock _lock = new();
    private readonly Kept?[] _kept;
    private long _uses;

    /// <param name="largest">The bytes of the largest block.</param>
    protected ImageBlocks(int largest) => _kept = new Kept?[Math.Clamp(KeptBytes / largest, 2, MostKept)];

    /// <summary>The block that has a byte.</summary>
    /// <param name="position">The byte: a guest address, or an offset in the memory, as the format counts.</param>
    /// <param name="start">The position of the block's first byte.</param>
    /// <param name="size">The bytes of the block.</param>
    /// <returns>Its number.</returns>
    public abstract long Find(ulong position, out ulong start, out int size);

    /// <summary>Reads bytes that blocks have; fewer than asked only with an error number.</summary>
    public int TryRead(ulong position, Span<byte> buffer, out int error)
    {
        error = 0;
        var done = 0;
        while (done < buffer.Length)
        {
            var number = Find(position + (ulong)done, out var start, out var size);
            var inside = (int)(position + (ulong)done - start);
            var part = buffer.Slice(done, Math.Min(size - inside, buffer.Length - done));
            error = part.Length == size ? TryUnpack(number, part) : TryCopy(number, size, inside, part);
            if (error != 0) break;
            done += part.Length;
        }

        return done;
    }

    /// <summary>Unpacks a block; 0, or EIO where the file ends before it, EBADMSG where it is damaged.</summary>
    /// <param name="number">Its number.</param>
    /// <param name="target">Where to; of just its size.</param>
    protected abstract int TryUnpack(long number, Span<byte> target);

    private int TryCopy(long number, int size, int inside, Span<byte> target)
    {
        if (TryFindKept(number) is { } found)
        {
            found.AsSpan(inside, target.Length).CopyTo(target);
            return 0;
        }

        var block = GC.AllocateUninitializedArray<byte>(size);
        if (TryUnpack(number, block) is var error and not 0) return error;
        block.AsSpan(inside, target.Length).CopyTo(target);
        lock (_lock)
        {
            var oldest = 0;
            for (var i = 1; i < _kept.Length && _kept[oldest] is not null; i++)
            {
                if (_kept[i] is null || _kept[i]!.Used < _kept[oldest]!.Used) oldest = i;
            }

            _kept[oldest] = new Kept(number, block) { Used = ++_uses };
        }

        return 0;
    }

    private byte[]? TryFindKept(long number)
    {
        lock (_lock)
        {
            if (Array.Find(_kept, kept => kept?.Number == number) is not { } found) return null;
            found.Used = ++_uses;
            return found.Bytes;
        }
    }

    private sealed record Kept(long Number, byte[] Bytes)
    {
        public long Used { get; set; }
    }
}
