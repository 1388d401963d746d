using Microsoft.Win32.SafeHandles;
using static GuestMemory.Core.Tests.FrontEnd;

namespace GuestMemory.Core.Tests;

/// <summary>
/// A front end whose VM arrives by post-copy. What its guest has done so far lies in the memory of <see cref="Front"/>, the source; the back end has other
/// memory, to which a page comes when the back end misses it, except for those that are late. As QEMU does, a page is put into the memory's file, and
/// who waits for it is woken then. Nothing here touches that memory: it is read by its file, where a missing page stays missing.
/// </summary>
internal sealed unsafe class ArrivingDisk : IDisposable
{
    private readonly SafeDescriptor _memory = Memfd();
    private readonly SafeFileHandle _file;
    private readonly SafeDescriptor _userfaultfd;
    private readonly SafeDescriptor _stop = EventFd.Create();
    private readonly Thread _filler;
    private readonly ulong _base;
    private readonly HashSet<ulong> _late;

    // Under the lock.
    private readonly Lock _lock = new();
    private readonly HashSet<ulong> _missed = [];
    private readonly HashSet<ulong> _there = [];

    /// <param name="backend">The back end.</param>
    /// <param name="late">The pages that come when the test says so.</param>
    public ArrivingDisk(VhostUserBackend backend, params ulong[] late)
    {
        _late = [.. late];
        _file = Interop.Descriptor.Duplicate(_memory);
        Front = new DiskFrontEnd(backend);
        Front.Negotiate();
        Front.Send(VhostUserRequest.PostcopyAdvise);
        Assert.Empty(Front.Reply(VhostUserRequest.PostcopyAdvise));
        _userfaultfd = Assert.Single(Front.Received);
        Front.Accepted(VhostUserRequest.PostcopyListen);
        Front.Send(VhostUserRequest.SetMemTable, Table(Region(0)), 0, _memory);
        var reply = Front.Reply(VhostUserRequest.SetMemTable);
        _base = BitConverter.ToUInt64(reply, 8 + 16);
        Assert.Equal(Table(Region(0, user: _base)), reply);
        Front.Send(VhostUserRequest.SetMemTable, Bytes(0UL));
        _filler = new Thread(FillWhatIsMissed);
        _filler.Start();
    }

    public DiskFrontEnd Front { get; }

    /// <summary>Has the first virtqueue run, which lies at address 0.</summary>
    public void Start() => Front.StartVring(0, 0, Front.Kick, Front.Call);

    public void Kick() => EventFd.Signal(Front.Kick);

    /// <summary>Whether the back end has missed a page.</summary>
    public bool IsMissed(ulong page)
    {
        lock (_lock) return _missed.Contains(page);
    }

    /// <summary>How many requests a virtqueue has returned.</summary>
    public ushort UsedIndex(ulong at = 0) => BitConverter.ToUInt16(Read(at + DiskGuest.Used + 2, 2));

    public byte[] Read(ulong address, int length)
    {
        var bytes = new byte[length];
        RandomAccess.Read(_file, bytes, (long)address);
        return bytes;
    }

    /// <summary>Brings a page from the source, whether it is there already or not; or what is late and was missed.</summary>
    public void Bring(ulong page)
    {
        lock (_lock)
        {
            _late.Remove(page);
            _there.Add(page);
            var bytes = new byte[0x1000];
            Front.Memory.ReadExact(page, bytes);
            RandomAccess.Write(_file, bytes, (long)page);
            _ = Userfaultfd.TryWake(_userfaultfd.Number, _base + page, 0x1000);
        }
    }

    /// <summary>Brings what is missing, as a migration does before it ends.</summary>
    public void BringAll()
    {
        for (ulong page = 0; page < Size; page += 0x1000)
        {
            lock (_lock)
            {
                if (!_there.Contains(page)) Bring(page);
            }
        }
    }

    public void Dispose()
    {
        EventFd.Signal(_stop);
        _filler.Join();
        Front.Dispose();
        _file.Dispose();
        _memory.Dispose();
        _stop.Dispose();
    }

    private void FillWhatIsMissed()
    {
        var knowsNoWait = false;
        while (true)
        {
            Span<PollFd> entries = [new PollFd { fd = _userfaultfd.Number, events = Poll.POLLIN }, new PollFd { fd = _stop.Number, events = Poll.POLLIN }];
            _ = Poll.Wait(entries, -1);
            if (entries[1].revents != 0) return;
            UffdMsg message;
            while (Userfaultfd.TryRead(_userfaultfd.Number, &message, 1, ref knowsNoWait) == 1)
            {
                var page = message.pagefault_address - _base;
                lock (_lock)
                {
                    _missed.Add(page);
                    // Two threads can miss one page, and the first may have written to it meanwhile.
                    if (_there.Contains(page)) _ = Userfaultfd.TryWake(_userfaultfd.Number, message.pagefault_address, 0x1000);
                    else if (!_late.Contains(page)) Bring(page);
                }
            }
        }
    }
}
