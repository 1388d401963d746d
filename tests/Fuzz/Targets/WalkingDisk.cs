using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.VhostUser;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Fuzz.Targets;

/// <summary>A disk that serves its virtqueues when it is told to, in the caller's thread, and looks at what it is about to do.</summary>
internal sealed unsafe class WalkingDisk(BlockDevice disk, SafeFileHandle image) : IVhostUserDevice, IDisposable
{
    private readonly Dictionary<int, VhostUserVring> _vrings = [];
    private readonly BlockRequest _request = new(0);

    public ulong Features => disk.Features;

    public int QueueCount => disk.QueueCount;

    public int MaxQueueSize => disk.MaxQueueSize;

    public bool TryReadConfig(uint offset, Span<byte> destination) => disk.TryReadConfig(offset, destination);

    public void StartVring(VhostUserVring vring) => _vrings.Add(vring.Index, vring);

    public void StopVring(VhostUserVring vring) => Check.True(_vrings.Remove(vring.Index), "a virtqueue is stopped that does not run");

    public void Serve(int most)
    {
        foreach (var vring in _vrings.Values)
        {
            _ = Check.TryParse(() => Serve(vring, most), out _, GuestMemoryError.InvalidQueue);
        }
    }

    public void Dispose() => _request.Dispose();

    private bool Serve(VhostUserVring vring, int most)
    {
        var queue = new SplitQueue(vring);
        for (var i = 0; i < most && queue.TryPop() is { } chain; i++)
        {
            foreach (var (address, length) in (IEnumerable<DescriptorBuffer>)[.. chain.Readable, .. chain.Writable])
                Check.True(length > 0 && vring.Memory.CheckRange(address, length), "a chain leaves the memory");
            if (chain.WritableLength == 0) return false;
            if (_request.Begin(chain, vring, disk))
            {
                do CheckOperation(_request.Operation, vring.Memory);
                while (_request.Continue(ThreadDiskIo.Execute((int)image.DangerousGetHandle(), _request.Operation)));
            }

            _request.MarkFilled(vring.Memory);
            chain.Write(chain.WritableLength - 1, [_request.Status]);
            Check.True(_request.Written <= chain.WritableLength, "more was written than there is room for");
            queue.Push(chain, _request.Written);
        }

        queue.Signal();
        queue.EnableKicks();
        queue.DisableKicks();
        return true;
    }

    private void CheckOperation(in DiskOperation operation, GuestMemoryMmap memory)
    {
        var end = (UInt128)disk.Capacity * BlockDevice.SectorSize;
        UInt128 length = operation.Length;
        for (var i = 0; i < operation.Count; i++)
        {
            var piece = ((IoVec*)operation.Pieces)[i];
            length += piece.iov_len;
            Check.True(memory.Regions.Any(region => region.GetMmapRegion().HostAddress is var start && (ulong)piece.iov_base >= start
                && (UInt128)(ulong)piece.iov_base + piece.iov_len <= (UInt128)start + region.Size), "the kernel is to access other memory");
        }

        Check.True(operation.Offset + length <= end, "the kernel is to access what is behind the disk");
    }
}
