using System.Runtime.InteropServices;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <summary>
/// A request of the guest that a disk is working on, and a place for the next one afterwards. Nothing of guest memory is read twice: header
/// and ranges are copied, and the pieces are those that <see cref="SplitQueue"/> has checked. For the virtqueue's thread.
/// </summary>
internal sealed unsafe class BlockRequest(int place) : IDisposable
{
    // IOV_MAX.
    private const int MaxPieces = 1024;

    // A file that says EAGAIN for ever must not keep the thread busy for ever.
    private const int MaxRetries = 1000;

    private readonly List<DiskOperation> _ranges = [];
    private IoVec* _pieces;
    private int _room;
    private int _first;
    private int _count;
    private uint _kind;
    private ulong _position;
    private uint _left;
    private uint _filled;
    private int _writeFlags;
    private int _nextRange;
    private int _retries;

    /// <summary>Its number among the virtqueue's.</summary>
    public int Place { get; } = place;

    public DescriptorChain Chain { get; private set; } = null!;

    /// <summary>VIRTIO_BLK_S_..., when it has ended.</summary>
    public byte Status { get; private set; }

    /// <summary>What is to be done next.</summary>
    public DiskOperation Operation => _kind switch
    {
        VirtioBlk.VIRTIO_BLK_T_IN => new DiskOperation(DiskAction.Read, _position, Pieces: (nint)(_pieces + _first), Count: _count - _first),
        VirtioBlk.VIRTIO_BLK_T_OUT => new DiskOperation(DiskAction.Write, _position, Flags: _writeFlags, Pieces: (nint)(_pieces + _first), Count: _count - _first),
        VirtioBlk.VIRTIO_BLK_T_FLUSH => new DiskOperation(DiskAction.Sync),
        _ => _ranges[_nextRange],
    };

    /// <summary>The bytes at the start of the writable buffers that it has filled, for the used ring; with the status where nothing is missing before it.</summary>
    public uint Written
    {
        get
        {
            var data = _kind == VirtioBlk.VIRTIO_BLK_T_IN ? _filled - _left : _filled;
            return data + 1 == Chain.WritableLength ? data + 1 : data;
        }
    }

    /// <summary>Takes a request of a chain, which has a byte for the status at its end; false where it has ended at once.</summary>
    /// <exception cref="GuestMemoryException">RegionDisposed, PageNotAccessible.</exception>
    public bool Begin(DescriptorChain chain, VhostUserVring vring, BlockDevice device)
    {
        Chain = chain;
        _ranges.Clear();
        (_first, _count, _filled, _left, _nextRange, _retries) = (0, 0, 0, 0, 0, 0);
        VirtioBlkOuthdr header;
        var hasHeader = chain.Read(0, new Span<byte>(&header, sizeof(VirtioBlkOuthdr))) == sizeof(VirtioBlkOuthdr);
        _kind = hasHeader ? header.type : uint.MaxValue;
        if (!hasHeader) return End(VirtioBlk.VIRTIO_BLK_S_IOERR);
        switch (_kind)
        {
            case VirtioBlk.VIRTIO_BLK_T_IN:
                return Transfer(chain.Writable, 0, chain.WritableLength - 1, header.sector, vring.Memory, device);
            case VirtioBlk.VIRTIO_BLK_T_OUT:
                // A driver that knows no flushes expects its writes to be on the disk.
                _writeFlags = (vring.Features >> VirtioBlk.VIRTIO_BLK_F_FLUSH & 1) == 0 ? PositionedIo.RWF_DSYNC : 0;
                return device.IsReadOnly ? End(VirtioBlk.VIRTIO_BLK_S_IOERR)
                    : Transfer(chain.Readable, (uint)sizeof(VirtioBlkOuthdr), chain.ReadableLength - (uint)sizeof(VirtioBlkOuthdr), header.sector, vring.Memory, device);
            case VirtioBlk.VIRTIO_BLK_T_FLUSH:
                return true;
            case VirtioBlk.VIRTIO_BLK_T_GET_ID:
                if (chain.WritableLength - 1 < device.Id.Length) return End(VirtioBlk.VIRTIO_BLK_S_IOERR);
                _filled = (uint)chain.Write(0, device.Id);
                return End(VirtioBlk.VIRTIO_BLK_S_OK);
            case VirtioBlk.VIRTIO_BLK_T_DISCARD or VirtioBlk.VIRTIO_BLK_T_WRITE_ZEROES when !device.IsReadOnly:
                return TakeRanges(device);
            default:
                return End(VirtioBlk.VIRTIO_BLK_S_UNSUPP);
        }
    }

    /// <summary>Notes the result of the operation; false where the request has ended, true where there is another operation.</summary>
    public bool Continue(int result)
    {
        if (result is -Errno.EINTR or -Errno.EAGAIN && _retries++ < MaxRetries) return true;
        if (result < 0) return (result == -Errno.EOPNOTSUPP && TryInTwoSteps()) || End(result == -Errno.EOPNOTSUPP ? VirtioBlk.VIRTIO_BLK_S_UNSUPP : VirtioBlk.VIRTIO_BLK_S_IOERR);
        if (_kind is VirtioBlk.VIRTIO_BLK_T_IN or VirtioBlk.VIRTIO_BLK_T_OUT)
        {
            Advance(Math.Min((uint)result, _left));
            if (_left == 0) return End(VirtioBlk.VIRTIO_BLK_S_OK);
            // Nothing more: the file was made shorter.
            return result > 0 || End(VirtioBlk.VIRTIO_BLK_S_IOERR);
        }

        return ++_nextRange < _ranges.Count || End(VirtioBlk.VIRTIO_BLK_S_OK);
    }

    /// <summary>Marks what the kernel has written into the memory. The data is there by now, and the guest is not told yet.</summary>
    public void MarkFilled(GuestMemoryMmap memory)
    {
        if (_kind != VirtioBlk.VIRTIO_BLK_T_IN) return;
        var left = _filled;
        foreach (var (address, length) in Chain.Writable)
        {
            if (left == 0) return;
            var count = Math.Min(left, length);
            foreach (var slice in memory.GetSlices(address, count)) slice.Bitmap.MarkDirty(0, slice.Size);
            left -= count;
        }
    }

    public void Dispose()
    {
        NativeMemory.Free(_pieces);
        _pieces = null;
    }

    private bool End(byte status)
    {
        Status = status;
        return false;
    }

    /// <summary>Has a range of buffers read from or written to the disk.</summary>
    private bool Transfer(IReadOnlyList<DescriptorBuffer> buffers, uint skip, uint length, ulong sector, GuestMemoryMmap memory, BlockDevice device)
    {
        if (length % BlockDevice.SectorSize != 0 || !device.Has(sector, length / BlockDevice.SectorSize)) return End(VirtioBlk.VIRTIO_BLK_S_IOERR);
        if (length == 0) return End(VirtioBlk.VIRTIO_BLK_S_OK);
        var wanted = length;
        for (var i = 0; i < buffers.Count; i++)
        {
            var (address, size) = buffers[i];
            var before = Math.Min(skip, size);
            skip -= before;
            var count = Math.Min(size - before, wanted);
            wanted -= count;
            if (!TryAdd(memory, address + before, count)) return End(VirtioBlk.VIRTIO_BLK_S_IOERR);
        }

        (_position, _left) = (sector * BlockDevice.SectorSize, length);
        if (_kind == VirtioBlk.VIRTIO_BLK_T_IN) _filled = length;
        return true;
    }

    /// <summary>Adds a buffer, which may lie in several regions; false where there are too many pieces for the kernel.</summary>
    private bool TryAdd(GuestMemoryMmap memory, GuestAddress address, uint length)
    {
        while (length > 0)
        {
            // The memory table of a running virtqueue does not change, and the chain was checked against it.
            var region = memory.FindRegion(address)!;
            var part = (uint)Math.Min(length, region.LastAddress - address.Value + 1);
            if (_count == MaxPieces) return false;
            if (_count == _room)
            {
                _room = Math.Min(MaxPieces, Math.Max(16, _room * 2));
                _pieces = (IoVec*)NativeMemory.Realloc(_pieces, (nuint)(_room * sizeof(IoVec)));
            }

            _pieces[_count++] = new IoVec { iov_base = (void*)memory.GetHostAddress(address), iov_len = part };
            address += part;
            length -= part;
        }

        return true;
    }

    private void Advance(uint bytes)
    {
        _position += bytes;
        _left -= bytes;
        while (bytes > 0)
        {
            ref var piece = ref _pieces[_first];
            var part = (uint)Math.Min(bytes, piece.iov_len);
            piece = new IoVec { iov_base = (byte*)piece.iov_base + part, iov_len = piece.iov_len - part };
            if (piece.iov_len == 0) _first++;
            bytes -= part;
        }
    }

    private bool TakeRanges(BlockDevice device)
    {
        var bytes = Chain.ReadableLength - (uint)sizeof(VirtioBlkOuthdr);
        var size = (uint)sizeof(VirtioBlkDiscardWriteZeroes);
        if (bytes == 0 || bytes % size != 0 || bytes / size > BlockDevice.MaxRanges) return End(VirtioBlk.VIRTIO_BLK_S_IOERR);
        Span<VirtioBlkDiscardWriteZeroes> ranges = stackalloc VirtioBlkDiscardWriteZeroes[(int)(bytes / size)];
        Chain.Read((uint)sizeof(VirtioBlkOuthdr), MemoryMarshal.AsBytes(ranges));
        var known = _kind == VirtioBlk.VIRTIO_BLK_T_WRITE_ZEROES ? VirtioBlk.VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;
        foreach (var range in ranges)
        {
            if ((range.flags & ~known) != 0) return End(VirtioBlk.VIRTIO_BLK_S_UNSUPP);
            if (!device.Has(range.sector, range.num_sectors)) return End(VirtioBlk.VIRTIO_BLK_S_IOERR);
            if (range.num_sectors == 0) continue;
            var isHole = _kind == VirtioBlk.VIRTIO_BLK_T_DISCARD || range.flags != 0;
            _ranges.Add(new DiskOperation(DiskAction.Allocate, range.sector * BlockDevice.SectorSize, (ulong)range.num_sectors * BlockDevice.SectorSize,
                PositionedIo.FALLOC_FL_KEEP_SIZE | (isHole ? PositionedIo.FALLOC_FL_PUNCH_HOLE : PositionedIo.FALLOC_FL_ZERO_RANGE)));
        }

        return _ranges.Count > 0 || End(VirtioBlk.VIRTIO_BLK_S_OK);
    }

    /// <summary>A file system that cannot zero a range (tmpfs) can free it and allocate it again.</summary>
    private bool TryInTwoSteps()
    {
        if (_nextRange >= _ranges.Count || (_ranges[_nextRange].Flags & PositionedIo.FALLOC_FL_ZERO_RANGE) == 0) return false;
        var range = _ranges[_nextRange];
        _ranges[_nextRange] = range with { Flags = PositionedIo.FALLOC_FL_KEEP_SIZE | PositionedIo.FALLOC_FL_PUNCH_HOLE };
        _ranges.Insert(_nextRange + 1, range with { Flags = PositionedIo.FALLOC_FL_KEEP_SIZE });
        return true;
    }
}
