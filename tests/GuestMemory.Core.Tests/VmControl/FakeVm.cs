using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>A VM in memory, with the errors that <see cref="IVm"/> promises, for hosts without KVM and for faults that KVM cannot be made to have.</summary>
internal sealed class FakeVm : IVm
{
    private readonly GuestRegionMmap _region = new(new MmapRegionBuilder(0x10000).Build(), new GuestAddress(0));

    public FakeVm() => Memory = GuestMemoryMmap.FromRegions([_region]);

    public GuestMemoryMmap Memory { get; }

    public Dictionary<uint, (ulong Address, SlotMemory Mapping, bool ReadOnly, MemCacheType Cache)> Slots { get; } = [];

    public List<string> Calls { get; } = [];

    /// <summary>The error number with which the next calls of an operation fail.</summary>
    public Dictionary<string, int> Faults { get; } = [];

    public uint AddMemoryRegion(GuestAddress address, SlotMemory mapping, bool readOnly, bool logDirtyPages, MemCacheType cache)
    {
        Note("add", $"0x{address.Value:x} 0x{mapping.Size:x} ro={readOnly} log={logDirtyPages} {cache}");
        if (address.Value > ulong.MaxValue - mapping.Size) throw Error(Errno.EOVERFLOW);
        if (address.Value < 0x10000) throw Error(Errno.ENOSPC);
        if (Slots.Values.Any(slot => address.Value < slot.Address + slot.Mapping.Size && slot.Address < address.Value + mapping.Size)) throw Error(Errno.EEXIST);
        uint number = 1;
        while (Slots.ContainsKey(number)) number++;
        Slots.Add(number, (address.Value, mapping, readOnly, cache));
        return number;
    }

    public SlotMemory RemoveMemoryRegion(uint slot)
    {
        Note("remove", $"{slot}");
        return Slots.Remove(slot, out var removed) ? removed.Mapping : throw Error(Errno.ENOENT);
    }

    public void AddFdMapping(uint slot, ulong offset, ulong size, SafeHandle file, ulong fileOffset, MemoryProtection protection)
    {
        Note("map", $"{slot} 0x{offset:x} 0x{size:x} from 0x{fileOffset:x} {protection}");
        InArena(slot, arena => arena.AddFdMapping(offset, size, file, fileOffset, protection));
    }

    public void RemoveMapping(uint slot, ulong offset, ulong size)
    {
        Note("unmap", $"{slot} 0x{offset:x} 0x{size:x}");
        InArena(slot, arena => arena.RemoveMapping(offset, size));
    }

    public void MsyncMemoryRegion(uint slot, ulong offset, ulong size) => Note("msync", $"{slot} 0x{offset:x} 0x{size:x}");

    public void MadvisePageoutMemoryRegion(uint slot, ulong offset, ulong size) => Note("pageout", $"{slot} 0x{offset:x} 0x{size:x}");

    public void MadviseRemoveMemoryRegion(uint slot, ulong offset, ulong size) => Note("madviseremove", $"{slot} 0x{offset:x} 0x{size:x}");

    public void HandleBalloonEvent(BalloonEvent balloonEvent)
    {
        Note("balloon", $"{balloonEvent.Kind} 0x{balloonEvent.Address.Value:x} 0x{balloonEvent.Size:x}");
        if (balloonEvent.Kind == BalloonEventKind.Inflate && balloonEvent.Address.Value >= 0x10000) throw Error(Errno.EIO);
    }

    public void RegisterIoEvent(SafeHandle eventFd, IoEventAddress address, Datamatch datamatch) => Note("register", $"{address} {datamatch.Length} {datamatch.Value}");

    public void UnregisterIoEvent(SafeHandle eventFd, IoEventAddress address, Datamatch datamatch) => Note("unregister", $"{address} {datamatch.Length} {datamatch.Value}");

    public void Dispose()
    {
        foreach (var slot in Slots.Values) slot.Mapping.Dispose();
        _region.Dispose();
    }

    private void InArena(uint slot, Action<SlotMemory> action)
    {
        if (!Slots.TryGetValue(slot, out var found)) throw Error(Errno.EINVAL);
        try
        {
            action(found.Mapping);
        }
        catch (GuestMemoryException exception) when (exception is not SyscallException)
        {
            throw Error(Errno.EIO);
        }
    }

    private void Note(string operation, string arguments)
    {
        if (Faults.TryGetValue(operation, out var error)) throw Error(error);
        Calls.Add($"{operation} {arguments}");
    }

    private static SyscallException Error(int error) => new("fake", error, "Trying");
}
