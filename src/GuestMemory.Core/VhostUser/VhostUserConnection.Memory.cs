using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <content>The memory table and the dirty log.</content>
public sealed partial class VhostUserConnection : IRegionHolder
{
    private readonly VhostUserLog _log = new();
    private volatile VhostUserMemory _memory = VhostUserMemory.Empty;

    /// <summary>The memory of the VM at this moment. The connection releases its regions when the front end takes them away.</summary>
    public GuestMemoryMmap Memory => _postcopy is { AwaitsAck: true } ? GuestMemoryMmap.Empty : _memory.Guest;

    /// <summary>Whether writes to the memory are marked in a log that the front end has shared; see <see cref="VhostUserBackend.IsLogging"/>.</summary>
    public bool IsLogging => _log.IsMarked;

    string IRegionHolder.Description => "the VM of a vhost-user front end";

    bool IRegionHolder.IsLive => true;

    bool IRegionHolder.ProvidesPages => false;

    /// <summary>This process takes memory away that the front end has shared: the device cannot go on.</summary>
    void IRegionHolder.Release(MmapRegion region)
    {
        try
        {
            Fail(new GuestMemoryException(GuestMemoryError.RegionDisposed, "Memory of the VM was removed in this process."));
        }
        catch (ObjectDisposedException)
        {
            // The connection has ended at the same moment.
        }
    }

    private byte[]? ExecuteMemory(VhostUserMessage message)
    {
        switch (message.Request)
        {
            case VhostUserRequest.SetMemTable:
                var table = VhostUserMemory.Map(VhostUserLayout.Regions(message), message.Descriptors, _trusted);
                ReplaceMemory(table, table.Guest.Regions, _memory.Guest.Regions);
                return IsPostcopy ? VhostUserLayout.WithAddresses(message, table.HostAddresses) : null;
            case VhostUserRequest.GetMaxMemSlots:
                Require(message, VhostUserProtocolFeatures.ConfigureMemSlots);
                return BytesOf((ulong)VhostUserMemory.MaxSlots);
            case VhostUserRequest.AddMemReg:
                Require(message, VhostUserProtocolFeatures.ConfigureMemSlots);
                var (larger, added) = _memory.Add(VhostUserLayout.Regions(message)[0], message.Descriptors[0], _trusted);
                ReplaceMemory(larger, [added], []);
                return IsPostcopy ? VhostUserLayout.WithAddresses(message, [added.GetMmapRegion().HostAddress]) : null;
            case VhostUserRequest.RemMemReg:
                Require(message, VhostUserProtocolFeatures.ConfigureMemSlots);
                var (smaller, removed) = _memory.Remove(VhostUserLayout.Regions(message)[0]);
                ReplaceMemory(smaller, [], [removed]);
                return null;
            case VhostUserRequest.SetLogBase:
                Require(message, VhostUserProtocolFeatures.LogShmfd);
                return SetLogBase(message);
            default:
                _log.SetEvent(TakeEvent(message)!);
                return null;
        }
    }

    /// <summary>Replaces the memory while no virtqueue runs, and releases what is not in it any more.</summary>
    private void ReplaceMemory(VhostUserMemory memory, IReadOnlyList<GuestMemoryRegion> added, IReadOnlyList<GuestMemoryRegion> removed)
    {
        var running = Running;
        try
        {
            foreach (var vring in running) _states[vring.Index].Translate(memory);
            _log.Cover(added);
            foreach (var region in added) region.GetMmapRegion().AddHolder(this);
            _postcopy?.Watch(added);
        }
        catch
        {
            foreach (var region in added) Unmap(region);
            throw;
        }

        // A device ends what it has under way first.
        foreach (var vring in running) StopVring(vring.Index);
        _postcopy?.Await(running.Select(static vring => vring.Index));
        _memory = memory;
        try
        {
            if (!IsPostcopy) foreach (var vring in running) StartVring(vring.Index);
        }
        finally
        {
            foreach (var region in removed) Unmap(region);
        }
    }

    private void Unmap(GuestMemoryRegion region)
    {
        region.GetMmapRegion().RemoveHolder(this);
        region.Dispose();
    }

    private byte[] SetLogBase(VhostUserMessage message)
    {
        if (message.Descriptors.Count == 0)
            throw new GuestMemoryException(GuestMemoryError.IncorrectFds, "A dirty log came without a descriptor, though the protocol feature LogShmfd was negotiated.");
        var payload = message.Body<VhostUserLogPayload>();
        VhostUserMemory.CheckSealed(message.Descriptors[0], _trusted, "dirty log");
        var log = MmapLogReg.FromFile(message.Descriptors[0], payload.MmapOffset, payload.MmapSize);
        try
        {
            _log.Replace(log, _memory.Guest.Regions, Running);
        }
        catch
        {
            log.Dispose();
            throw;
        }

        return BytesOf(payload);
    }
}
