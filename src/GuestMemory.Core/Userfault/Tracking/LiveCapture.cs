using System.Diagnostics;
using GuestMemory.Core.Images;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Writes the memory of a VM that runs to a file, as it is at one instant. Until that instant it notes which pages become writable; from then on each page is
/// copied before it changes, by the thread that answers the VM's faults or by <see cref="Sweep"/>, whichever is first. A page changes in two ways only:
/// the VM writes it, which is a fault, or gives it back, which waits until its event is read; and no such event is read before every page is copied
/// (<see cref="IsHolding"/>). A page that is missing is the image's, or zero where it was given back before. One thread answers faults and another
/// one sweeps.
/// </summary>
internal sealed unsafe class LiveCapture : IDisposable
{
    // What is copied at once, while a fault may wait for it.
    private const int PiecePages = 16;
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(10);

    // A line of fdinfo is some 40 bytes long.
    private const int InfoLength = 512;

    // Of protecting what was written while memory was protected.
    private const int MaxRounds = 8;
    private const long FewOpened = 256;

    // Of every thread: they never change.
    private readonly ILivePages _pages;
    private readonly SafeFileHandle _output;
    private readonly SafeFileHandle? _information;
    private readonly (UffdVmRegion Region, ulong Output)[] _parts;
    private readonly SafeMapping _mapping;
    private readonly PageBits _opened;
    private readonly PageBits _again;
    private readonly PageBits _givenBack;
    private readonly byte[] _piece = GC.AllocateUninitializedArray<byte>(PiecePages * (int)HostPage.Size, pinned: true);
    private readonly byte[] _faulted = GC.AllocateUninitializedArray<byte>(PiecePages * (int)HostPage.Size, pinned: true);

    // Under the lock: which pages are copied, and whoever copies one reads it.
    private readonly Lock _lock = new();
    private readonly PageBits _captured;
    private readonly RawImage.PageWriter _faultWriter;

    // How many faults wait for the lock.
    private int _waiting;

    // Held while a piece is copied.
    private readonly Lock _sweeping = new();
    private readonly RawImage.PageWriter _sweepWriter;
    private int _rounds;
    private volatile bool _isHolding;
    private volatile Exception? _failure;

    /// <param name="pages">What the VM's memory is read by; stays the caller's.</param>
    /// <param name="output">The file, as long as the memory and all zeros; stays the caller's.</param>
    /// <param name="information">The fdinfo of the VM's userfaultfd, taken over; null where that reports no removals.</param>
    public LiveCapture(ILivePages pages, SafeFileHandle output, SafeFileHandle? information)
    {
        _pages = pages;
        _output = output;
        _information = information;
        PageCount = UffdVmState.PagesOf(pages.Mappings);
        ulong at = 0;
        var parts = new List<(UffdVmRegion, ulong)>();
        foreach (var region in UffdVmRegion.Of(pages.Mappings).OrderBy(static region => region.Offset))
        {
            parts.Add((region, at));
            at += region.Size;
        }

        _parts = [.. parts];
        var size = PageBits.SizeOf(PageCount);
        _mapping = Mman.Map((nuint)HostPage.RoundUp(4 * size, HostPage.Size), Mman.PROT_READ | Mman.PROT_WRITE, Mman.MAP_PRIVATE | Mman.MAP_ANONYMOUS | Mman.MAP_NORESERVE, -1, 0, "Mapping the record of a live export");
        _opened = new PageBits((ulong*)_mapping.Address, PageCount);
        _captured = new PageBits((ulong*)(_mapping.Address + (nint)size), PageCount);
        _again = new PageBits((ulong*)(_mapping.Address + (nint)(2 * size)), PageCount);
        _givenBack = new PageBits((ulong*)(_mapping.Address + (nint)(3 * size)), PageCount);
        _faultWriter = new RawImage.PageWriter(output);
        _sweepWriter = new RawImage.PageWriter(output);
    }

    /// <summary>The pages of the VM.</summary>
    public ulong PageCount { get; }

    /// <summary>Pages that became writable before the instant, since this began.</summary>
    public PageBits Opened => _opened;

    /// <summary>Room for the pages of <see cref="Opened"/> that are being protected again. For the thread that protects.</summary>
    public PageBits Again => _again;

    /// <summary>
    /// What was written while it was protected is protected again, and so on, so that few pages are left for the instant: moves <see cref="Opened"/> to
    /// <see cref="Again"/>, whose pages are to be protected; false where these are few, or it was done often enough. For the thread that protects.
    /// </summary>
    public bool TryTakeOpened()
    {
        if (_rounds == MaxRounds || _opened.Count() <= FewOpened) return false;
        _rounds++;
        _again.Reset(0, PageCount);
        _opened.MoveTo(_again);
        return true;
    }

    /// <summary>Whether pages that are not copied yet must stay as they are: the instant has come, and the end has not.</summary>
    public bool IsHolding => _isHolding;

    /// <summary>What was written to the file. Once nothing is copied any more.</summary>
    public (ulong Bytes, long Pages) Written => (_faultWriter.Written.Bytes + _sweepWriter.Written.Bytes, _faultWriter.Written.Pages + _sweepWriter.Written.Pages);

    /// <summary>The instant: every page is protected now, or missing. For the thread that answers faults.</summary>
    public void Begin()
    {
        if (_failure is null) _isHolding = true;
    }

    /// <summary>Copies nothing any more, and the VM goes on as without it. For any thread; the first reason is kept.</summary>
    public void Fail(Exception why)
    {
        lock (_lock)
        {
            _failure ??= why;
            _isHolding = false;
        }
    }

    /// <summary>The same, and when it returns nothing is read of the image. For the thread that answers faults, at the end of the VM's service.</summary>
    public void End(Exception why)
    {
        Fail(why);
        lock (_sweeping)
        {
            // A piece that is under way is done.
        }
    }

    /// <summary>Notes, or copies, pages that are about to become writable. For the thread that answers faults, and any that is about to give pages back.</summary>
    public void BeforeOpening(ulong first, ulong count)
    {
        if (!_isHolding)
        {
            _opened.Set(first, count);
            return;
        }

        try
        {
            while (count > 0)
            {
                var step = Math.Min(count, PiecePages);
                Interlocked.Increment(ref _waiting);
                lock (_lock)
                {
                    Interlocked.Decrement(ref _waiting);
                    CaptureFaulted(first, step);
                }

                first += step;
                count -= step;
            }
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or GuestMemoryException)
        {
            Fail(exception);
        }
    }

    /// <summary>
    /// A removal was read all the same: a fault that was counted had gone, since a signal took its thread away. Where a page of it is not copied yet the image
    /// would not be of one instant. For the thread that answers faults.
    /// </summary>
    public void NoteRemoval(ulong first, ulong count)
    {
        if (!_isHolding) return;
        // First: who copies a page of it at this moment looks for that.
        _givenBack.Set(first, count);
        if (Wants(first, count)) Fail(GivenBack());
    }

    /// <summary>Whether a page that comes must come protected, since it is not copied yet. For the thread that answers faults.</summary>
    public bool Wants(ulong first, ulong count) => _isHolding && _captured.Next(first, first + count, set: false) < first + count;

    /// <summary>
    /// How many faults wait to be read. As many messages are read next are faults, since the kernel gives these first; who reads more might read a
    /// removal, and so let it happen. No page is filled meanwhile, which would take a fault away. For the thread that answers faults.
    /// </summary>
    public int CountFaults()
    {
        Span<byte> text = stackalloc byte[InfoLength];
        try
        {
            text = text[..RandomAccess.Read(_information!, text, 0)];
        }
        catch (FileNotFoundException)
        {
            // Whose descriptor it tells of has closed that.
            Fail(new GuestMemoryException(GuestMemoryError.LiveFailed, "The VM ended before its memory was exported."));
            return 0;
        }
        catch (IOException exception)
        {
            Fail(exception);
            return 0;
        }

        var name = "pending:\t"u8;
        var at = text.IndexOf(name);
        var count = 0;
        for (var i = at + name.Length; at >= 0 && i < text.Length && text[i] is >= (byte)'0' and <= (byte)'9'; i++) count = Math.Min((count * 10) + (text[i] - '0'), UffdVmState.Batch);
        return count;
    }

    /// <summary>Copies every page that no fault has copied before.</summary>
    /// <param name="progress">Told the bytes done.</param>
    /// <param name="cancellation">Ends it.</param>
    /// <exception cref="GuestMemoryException">LiveFailed; PageNotAccessible: a page cannot be read.</exception>
    /// <exception cref="IOException">The file cannot be written.</exception>
    public void Sweep(Action<ulong>? progress, CancellationToken cancellation)
    {
        foreach (var (region, output) in _parts)
        {
            for (ulong done = 0; done < region.PageCount;)
            {
                cancellation.ThrowIfCancellationRequested();
                var count = Math.Min(PiecePages, region.PageCount - done);
                lock (_sweeping) SweepPiece(region, output, region.FirstPage + done, count);
                done += count;
                progress?.Invoke(output + (done * HostPage.Size));
            }
        }

        ThrowIfFailed();
        _isHolding = false;
    }

    /// <summary>Throws what went wrong, where something did.</summary>
    public void ThrowIfFailed()
    {
        if (_failure is GuestMemoryException known) throw new GuestMemoryException(known.Error, known.Message, known);
        // With its number, which says that the disk is full.
        if (_failure is { } failure) throw new IOException(failure.Message, failure) { HResult = failure.HResult };
    }

    public void Dispose()
    {
        _isHolding = false;
        _information?.Dispose();
        _mapping.Dispose();
    }

    private void SweepPiece(UffdVmRegion region, ulong output, ulong first, ulong count)
    {
        // Bit i is of page i of the piece.
        ulong taken = 0, ofImage = 0, holes = 0;
        var piece = _piece.AsSpan(0, (int)(count * HostPage.Size));
        // A fault goes first: who lets go of the lock and takes it again would have it before who is woken.
        for (var wait = default(SpinWait); Volatile.Read(ref _waiting) != 0;) wait.SpinOnce(sleep1Threshold: -1);
        lock (_lock)
        {
            ThrowIfFailed();
            for (var page = _captured.Next(first, first + count, set: false); page < first + count; page = _captured.Next(page, first + count, set: false))
            {
                var end = _captured.Next(page, first + count, set: true);
                page += ReadPresent(region, page, end - page, piece[(int)((page - first) * HostPage.Size)..], first, ref taken);
                for (; page < end; page++)
                {
                    taken |= 1UL << (int)(page - first);
                    var place = Read(region, page, piece.Slice((int)((page - first) * HostPage.Size), (int)HostPage.Size));
                    if (place == Place.Image) ofImage |= 1UL << (int)(page - first);
                    if (place == Place.Hole) holes |= 1UL << (int)(page - first);
                }
            }

            _captured.Set(first, count);
        }

        if (holes != 0) CheckHoles(region, first, holes);

        // What the image has stays what it is, whatever becomes of the page.
        for (var i = 0; ofImage >> i != 0; i++)
        {
            if ((ofImage >> i & 1) != 0) ReadImage(region, first + (ulong)i, piece.Slice(i * (int)HostPage.Size, (int)HostPage.Size));
        }

        for (var i = 0; i < (int)count; i++)
        {
            var from = i;
            while (i < (int)count && (taken >> i & 1) != 0) i++;
            if (i > from) _sweepWriter.WriteNonZero(piece[(from * (int)HostPage.Size)..(i * (int)HostPage.Size)], output + ((first + (ulong)from - region.FirstPage) * HostPage.Size));
        }
    }

    private void CaptureFaulted(ulong first, ulong count)
    {
        if (!_isHolding) return;
        var (region, output) = PartOf(first);
        var page = _faulted.AsSpan(0, (int)HostPage.Size);
        for (var end = first + count; first < end; first++)
        {
            if (_captured.IsSet(first)) continue;
            var place = Read(region, first, page);
            if (place == Place.Image) ReadImage(region, first, page);
            // No event is being read: this is the thread that does.
            if (place == Place.Hole && !_pages.IsRemoved(first)) throw Unreadable(OffsetOf(region, first), Errno.EIO);
            _faultWriter.WriteNonZero(page, output + ((first - region.FirstPage) * HostPage.Size));
            _captured.Set(first);
        }
    }

    /// <summary>Reads pages that are not copied yet at once, as far as the memory has them and still has them afterwards; returns how many. Under the lock.</summary>
    private ulong ReadPresent(UffdVmRegion region, ulong page, ulong count, Span<byte> into, ulong first, ref ulong taken)
    {
        var offset = OffsetOf(region, page);
        var length = _pages.DataLength(offset, count * HostPage.Size) & ~(HostPage.Size - 1);
        if (length == 0) return 0;
        var done = _pages.ReadData(offset, into[..(int)length], out var error);
        if ((ulong)done != length || error != 0) return 0;
        var pages = _pages.DataLength(offset, length) / HostPage.Size;
        taken |= ((1UL << (int)pages) - 1) << (int)(page - first);
        return pages;
    }

    /// <summary>Reads a page that is not copied yet, or says that it is the image's. Under the lock.</summary>
    private Place Read(UffdVmRegion region, ulong page, Span<byte> into)
    {
        var offset = OffsetOf(region, page);
        // A page that comes meanwhile is noted as such after it is there.
        if (!_pages.HasData(offset) && !_pages.IsRemoved(page) && !_pages.HasCome(page)) return Place.Image;
        if (_pages.ReadData(offset, into, out var error) != into.Length || error != 0) throw Unreadable(offset, error);
        return _pages.HasData(offset) ? Place.Memory : Place.Hole;
    }

    /// <summary>
    /// Pages that the VM has given back are zero, where that was before the instant. A removal that was read by mistake may be one of them: its pages go
    /// while the event is on its way to <see cref="NoteRemoval"/>, so it is waited until what was read is noted.
    /// </summary>
    private void CheckHoles(UffdVmRegion region, ulong first, ulong holes)
    {
        for (var started = Stopwatch.GetTimestamp(); !_pages.AreEventsNoted(); Thread.Yield())
        {
            // Who reads events may wait for this.
            lock (_lock) ThrowIfFailed();
            if (Stopwatch.GetElapsedTime(started) > s_patience) throw Unreadable(OffsetOf(region, first), Errno.ETIMEDOUT);
        }

        for (var page = first; holes != 0; holes >>= 1, page++)
        {
            if ((holes & 1) == 0) continue;
            if (_givenBack.IsSet(page)) throw GivenBack();
            if (!_pages.IsRemoved(page)) throw Unreadable(OffsetOf(region, page), Errno.EIO);
        }
    }

    private void ReadImage(UffdVmRegion region, ulong page, Span<byte> into)
    {
        if (_pages.ReadImage(OffsetOf(region, page), into, out var error) != into.Length) throw Unreadable(OffsetOf(region, page), error);
    }

    private static GuestMemoryException GivenBack() => new(GuestMemoryError.LiveFailed, "The VM gave a page back before it was copied, in a moment in which that could not be held up. Export again.");

    private static GuestMemoryException Unreadable(ulong offset, int error) => new(GuestMemoryError.PageNotAccessible,
        $"The page at 0x{offset:x} of the VM cannot be read ({Errno.Name(error)}){(error == Errno.EIO ? ": it is not in the memfd that the VMM handed over, whose memory is no shared mapping of it" : "")}.");

    private static ulong OffsetOf(UffdVmRegion region, ulong page) => region.Offset + ((page - region.FirstPage) * HostPage.Size);

    private (UffdVmRegion Region, ulong Output) PartOf(ulong page)
    {
        foreach (var part in _parts)
        {
            if (page - part.Region.FirstPage < part.Region.PageCount) return part;
        }

        throw new ArgumentOutOfRangeException(nameof(page));
    }

    private enum Place
    {
        Memory,
        Image,

        /// <summary>The memfd does not have it: it was given back.</summary>
        Hole,
    }
}
