using System.Diagnostics;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// All by which the memory of a VM is read beside its handler: the memfd that it is, the handler's state of the VM, and the image. A page that
/// the memfd has is the VM's; any other is zero where the VM gave it back, and the image's where it has not come yet. Nothing here brings
/// a page in, or changes one. It lives until the last of its users lets go of it. Safe from any thread.
/// </summary>
internal sealed unsafe class UffdVmFiles : ILivePages
{
    // For a worker that has ended in the middle of reading events, until its successor is there.
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(10);

    private readonly SafeDescriptor _memory;
    private readonly SafeFileHandle _reader;
    private readonly UffdVmState _state;
    private readonly PageSource _source;
    private readonly bool _isBorrowed;
    private readonly PageScratchPool _scratches = new();
    private int _users = 1;

    /// <summary>Takes all of it over, also where it fails.</summary>
    /// <param name="memory">The memfd, open for reading.</param>
    /// <param name="state">The memfd of the VM's state, open for reading.</param>
    /// <param name="mappings">The VM's mapping list.</param>
    /// <param name="source">The image.</param>
    /// <param name="isBorrowed">Whether the image stays the caller's, and the memfd was checked when it was handed over.</param>
    /// <exception cref="GuestMemoryException">They do not fit each other; StateMismatch: the handler is another program's, whose state cannot be read.</exception>
    public UffdVmFiles(SafeDescriptor memory, SafeDescriptor state, IReadOnlyList<GuestRegionUffdMapping> mappings, PageSource source, bool isBorrowed = false)
    {
        _memory = memory;
        _reader = new SafeFileHandle(memory.Number, ownsHandle: false);
        _source = source;
        _isBorrowed = isBorrowed;
        Mappings = mappings;
        try
        {
            using (state)
            {
                UffdMappingList.Validate(mappings, source.Length);
                if (!isBorrowed) UffdMappingList.CheckMemory(mappings, memory);
                _state = new UffdVmState(UffdVmState.PagesOf(mappings), state, isReadOnly: true);
            }
        }
        catch
        {
            Close();
            throw;
        }
    }

    public IReadOnlyList<GuestRegionUffdMapping> Mappings { get; }

    /// <summary>Becomes a further user; false once the last one has gone.</summary>
    public bool TryUse()
    {
        for (var users = Volatile.Read(ref _users); users > 0; users = Volatile.Read(ref _users))
        {
            if (Interlocked.CompareExchange(ref _users, users + 1, users) == users) return true;
        }

        return false;
    }

    /// <summary>Is a user no more. With the last one everything is closed.</summary>
    public void Leave()
    {
        if (Interlocked.Decrement(ref _users) == 0) Close();
    }

    /// <summary>Copies bytes of the VM's memory; returns how many came, fewer than asked only with an error number.</summary>
    /// <param name="page">The number of the page, among all the VM's, in which the first byte lies.</param>
    /// <param name="offset">Where the first byte stands in the memfd, and in the image.</param>
    /// <param name="buffer">Where to.</param>
    /// <param name="error">0; EIO: the memfd lacks a page that the VM has; ETIMEDOUT: no process serves the VM; an error of the image.</param>
    public int Read(ulong page, ulong offset, Span<byte> buffer, out int error)
    {
        var end = (long)offset + buffer.Length;
        var first = offset / HostPage.Size;
        // A page that the memfd lacked and that had come: it did so meanwhile, or the memfd will never have it.
        var doubtful = ulong.MaxValue;
        error = 0;
        var done = 0;
        while (done < buffer.Length && error == 0)
        {
            var from = (long)offset + done;
            var data = Extents.NextData(_memory, from, end);
            done += data > from
                ? ReadMissing(page + (((ulong)from / HostPage.Size) - first), (ulong)from, buffer.Slice(done, (int)(data - from)), ref doubtful, out error)
                : ReadPresent(from, buffer.Slice(done, (int)(Extents.NextHole(_memory, from, end) - from)), out error);
        }

        return done;
    }

    /// <summary>Where the memfd has data next, from an offset on; the end where it has none before.</summary>
    public ulong NextData(ulong offset, ulong end) => (ulong)Extents.NextData(_memory, (long)offset, (long)end);

    /// <summary>Where the data at an offset ends.</summary>
    public ulong NextHole(ulong offset, ulong end) => (ulong)Extents.NextHole(_memory, (long)offset, (long)end);

    /// <summary>Whether the memfd has the page at an offset.</summary>
    public bool HasData(ulong offset) => NextData(offset, offset + 1) == offset;

    public ulong DataLength(ulong offset, ulong length) => HasData(offset) ? NextHole(offset, offset + length) - offset : 0;

    /// <summary>Whether the VM gave a page back.</summary>
    public bool IsRemoved(ulong page) => _state.Removed.IsSet(page);

    /// <summary>Whether a page has come.</summary>
    public bool HasCome(ulong page) => _state.Filled.IsSet(page);

    /// <summary>Whether all that was read of the VM's events is on record; false where a read that had begun goes on: ask again.</summary>
    public bool AreEventsNoted() => _state.Reads.TryAwait();

    /// <summary>Copies what the memfd has, and zeros where it has nothing.</summary>
    public int ReadData(ulong offset, Span<byte> buffer, out int error) => ReadPresent((long)offset, buffer, out error);

    private int ReadPresent(long offset, Span<byte> buffer, out int error)
    {
        error = 0;
        try
        {
            // Never by a mapping: a touch of a page that was given back meanwhile would make one.
            var count = RandomAccess.Read(_reader, buffer, offset);
            if (count == 0 && !buffer.IsEmpty) error = Errno.EIO;
            return count;
        }
        catch (IOException)
        {
            error = Errno.EIO;
            return 0;
        }
    }

    /// <summary>Reads pages that the memfd did not have a moment ago.</summary>
    private int ReadMissing(ulong page, ulong offset, Span<byte> buffer, ref ulong doubtful, out int error)
    {
        // A page that was given back goes when the event of that was read, and is on record when the read is over.
        if (!TryAwaitEvents())
        {
            error = Errno.ETIMEDOUT;
            return 0;
        }

        var done = 0;
        error = 0;
        while (done < buffer.Length && error == 0)
        {
            var at = offset + (ulong)done;
            var skip = at & (HostPage.Size - 1);
            var number = page + ((at / HostPage.Size) - (offset / HostPage.Size));
            var pages = (skip + (ulong)(buffer.Length - done) + HostPage.Size - 1) / HostPage.Size;
            pages = _state.Removed.Run(number, pages, out var isRemoved);
            var hasCome = false;
            if (!isRemoved) pages = _state.Filled.Run(number, pages, out hasCome);
            if (hasCome)
            {
                if (doubtful == number) error = Errno.EIO;
                doubtful = number;
                return done;
            }

            var part = buffer.Slice(done, (int)Math.Min((pages * HostPage.Size) - skip, (ulong)(buffer.Length - done)));
            if (isRemoved) part.Clear();
            done += isRemoved ? part.Length : ReadImage(at, part, out error);
        }

        return done;
    }

    /// <summary>Copies bytes of the image, whether the VM has them or others; fewer than asked only with an error number.</summary>
    public int ReadImage(ulong offset, Span<byte> buffer, out int error)
    {
        var scratch = _scratches.Rent();
        try
        {
            var done = 0;
            error = 0;
            while (done < buffer.Length && error == 0)
            {
                var skip = (offset + (ulong)done) & (HostPage.Size - 1);
                var from = offset + (ulong)done - skip;
                error = _source.Locate(from, HostPage.RoundUp(skip + (ulong)(buffer.Length - done), HostPage.Size), scratch, out var run);
                if (error != 0) break;
                var part = buffer.Slice(done, (int)Math.Min(run.Length - skip, (ulong)(buffer.Length - done)));
                if (run.Data is null)
                {
                    part.Clear();
                    done += part.Length;
                    continue;
                }

                fixed (byte* local = part) done += (int)GuardedCopy.Read(run.Data + skip, local, (nuint)part.Length, out error);
            }

            return done;
        }
        finally
        {
            _scratches.Return(scratch);
        }
    }

    private bool TryAwaitEvents()
    {
        for (var started = Stopwatch.GetTimestamp(); !AreEventsNoted(); Thread.Sleep(1))
        {
            if (Stopwatch.GetElapsedTime(started) > s_patience) return false;
        }

        return true;
    }

    private void Close()
    {
        _reader.Dispose();
        _memory.Dispose();
        _state?.Dispose();
        if (!_isBorrowed) _source.Dispose();
        _scratches.Dispose();
    }
}
