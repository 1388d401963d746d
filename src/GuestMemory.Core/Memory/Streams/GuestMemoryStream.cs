namespace GuestMemory.Core;

/// <summary>
/// A range of guest memory as a stream that can be read, written and sought in. What is written is marked dirty. The memory stays its
/// owner's, and the stream its size. Reads and writes that may have to wait for a page do so where they are called, and are abandoned by
/// a token where they are asynchronous; memory that is simply there completes at once.
/// </summary>
public sealed class GuestMemoryStream : Stream
{
    private readonly GuestMemoryMmap _memory;
    private readonly GuestAddress _address;
    private readonly MemoryProtection _access;
    private long _position;
    private bool _closed;

    /// <param name="memory">The memory.</param>
    /// <param name="address">The first guest address.</param>
    /// <param name="size">How many bytes; every one of them is mapped. They may lie in regions that touch.</param>
    /// <exception cref="GuestMemoryException">InvalidGuestAddress, GuestAddressOverflow: a byte is not mapped.</exception>
    /// <exception cref="ArgumentOutOfRangeException">More than 2^63 - 1 bytes.</exception>
    public GuestMemoryStream(GuestMemoryMmap memory, GuestAddress address, ulong size)
    {
        ArgumentNullException.ThrowIfNull(memory);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(size, (ulong)long.MaxValue);
        memory.RequireRange(address, size);
        _memory = memory;
        _address = address;
        Size = (long)size;
        _access = (memory.CheckRange(address, size, MemoryProtection.Read) ? MemoryProtection.Read : MemoryProtection.None)
            | (memory.CheckRange(address, size, MemoryProtection.Write) ? MemoryProtection.Write : MemoryProtection.None);
    }

    /// <inheritdoc/>
    public override bool CanRead => !_closed && _access.Allows(MemoryProtection.Read);

    /// <inheritdoc/>
    public override bool CanSeek => !_closed;

    /// <inheritdoc/>
    public override bool CanWrite => !_closed && _access.HasWrite();

    /// <summary>The size of the range, in bytes.</summary>
    public override long Length
    {
        get
        {
            ObjectDisposedException.ThrowIf(_closed, this);
            return Size;
        }
    }

    /// <summary>Where in the range the next byte is read or written; it may lie past the end, where there is none.</summary>
    public override long Position
    {
        get
        {
            ObjectDisposedException.ThrowIf(_closed, this);
            return _position;
        }
        set
        {
            ObjectDisposedException.ThrowIf(_closed, this);
            ArgumentOutOfRangeException.ThrowIfNegative(value);
            _position = value;
        }
    }

    private long Size { get; }

    /// <inheritdoc/>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public override int Read(Span<byte> buffer)
    {
        buffer = buffer[..Readable(buffer.Length)];
        _memory.ReadExact(Here, buffer);
        _position += buffer.Length;
        return buffer.Length;
    }

    /// <inheritdoc/>
    public override int Read(byte[] buffer, int offset, int count)
    {
        ValidateBufferArguments(buffer, offset, count);
        return Read(buffer.AsSpan(offset, count));
    }

    /// <inheritdoc/>
    public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
    {
        buffer = buffer[..Readable(buffer.Length)];
        var read = _memory.ReadExactAsync(Here, buffer, cancellationToken);
        if (!read.IsCompletedSuccessfully) return new ValueTask<int>(WaitAsync());
        _position += buffer.Length;
        return new ValueTask<int>(buffer.Length);

        async Task<int> WaitAsync()
        {
            await read.ConfigureAwait(false);
            _position += buffer.Length;
            return buffer.Length;
        }
    }

    /// <inheritdoc/>
    public override Task<int> ReadAsync(byte[] buffer, int offset, int count, CancellationToken cancellationToken)
    {
        ValidateBufferArguments(buffer, offset, count);
        return ReadAsync(buffer.AsMemory(offset, count), cancellationToken).AsTask();
    }

    /// <inheritdoc/>
    /// <exception cref="NotSupportedException">The bytes do not fit before the end of the range, or the memory cannot be written.</exception>
    /// <exception cref="GuestMemoryException">PageNotAccessible; RegionDisposed.</exception>
    public override void Write(ReadOnlySpan<byte> buffer)
    {
        RequireRoom(buffer.Length);
        _memory.WriteExact(Here, buffer);
        _position += buffer.Length;
    }

    /// <inheritdoc/>
    public override void Write(byte[] buffer, int offset, int count)
    {
        ValidateBufferArguments(buffer, offset, count);
        Write(buffer.AsSpan(offset, count));
    }

    /// <inheritdoc/>
    public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default)
    {
        RequireRoom(buffer.Length);
        var written = _memory.WriteExactAsync(Here, buffer, cancellationToken);
        if (!written.IsCompletedSuccessfully) return new ValueTask(WaitAsync());
        _position += buffer.Length;
        return ValueTask.CompletedTask;

        async Task WaitAsync()
        {
            await written.ConfigureAwait(false);
            _position += buffer.Length;
        }
    }

    /// <inheritdoc/>
    public override Task WriteAsync(byte[] buffer, int offset, int count, CancellationToken cancellationToken)
    {
        ValidateBufferArguments(buffer, offset, count);
        return WriteAsync(buffer.AsMemory(offset, count), cancellationToken).AsTask();
    }

    /// <inheritdoc/>
    public override long Seek(long offset, SeekOrigin origin)
    {
        ObjectDisposedException.ThrowIf(_closed, this);
        var from = origin switch
        {
            SeekOrigin.Begin => 0,
            SeekOrigin.Current => _position,
            SeekOrigin.End => Size,
            _ => throw new ArgumentOutOfRangeException(nameof(origin), origin, "An origin is Begin, Current or End."),
        };
        if (offset < -from || offset > long.MaxValue - from) throw new IOException("A stream has no position before its beginning, nor past 2^63 - 1.");
        return _position = from + offset;
    }

    /// <summary>A range of memory has a size of its own.</summary>
    /// <exception cref="NotSupportedException">Always.</exception>
    public override void SetLength(long value) => throw new NotSupportedException("A range of guest memory cannot become longer or shorter.");

    /// <summary>Does nothing: what is written is in the memory at once.</summary>
    public override void Flush()
    {
    }

    /// <inheritdoc/>
    public override Task FlushAsync(CancellationToken cancellationToken) => cancellationToken.IsCancellationRequested ? Task.FromCanceled(cancellationToken) : Task.CompletedTask;

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        _closed = true;
        base.Dispose(disposing);
    }

    private GuestAddress Here => new(unchecked(_address.Value + (ulong)_position));

    private int Readable(int count)
    {
        ObjectDisposedException.ThrowIf(_closed, this);
        if (!_access.Allows(MemoryProtection.Read)) throw new NotSupportedException("The memory cannot be read.");
        return (int)Math.Clamp(Size - _position, 0, count);
    }

    private void RequireRoom(int count)
    {
        ObjectDisposedException.ThrowIf(_closed, this);
        if (!_access.HasWrite()) throw new NotSupportedException("The memory cannot be written.");
        if (count > 0 && count > Size - _position) throw new NotSupportedException($"{count} bytes at position {_position} leave the range of {Size} bytes.");
    }
}
