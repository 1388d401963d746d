using System.Runtime.InteropServices;
using System.Text;

namespace GuestMemory.Core.Tests;

/// <summary>
/// A VMM that says whatever a test wants it to say. It holds its region as one whose pages may be missing: else a read of the test
/// would wait for a page in managed code, and where the handler is in this process, the next collection for that thread.
/// </summary>
internal sealed class RawPeer : IDisposable, IRegionHolder
{
    private readonly SafeDescriptor _socket = UnixSocket.Create(nonBlocking: false);
    private readonly SafeDescriptor _uffd;
    private readonly MmapRegion? _region;
    private bool _isReleased;

    public RawPeer(string path, GuestMemoryRegion? region = null, ulong features = Userfaultfd.UFFD_FEATURE_EVENT_REMOVE, ulong mode = Userfaultfd.UFFDIO_REGISTER_MODE_MISSING, bool connect = true)
    {
        _uffd = Userfaultfd.Create(features);
        if (connect) Connect(path);
        if (region is null) return;
        _region = region.GetMmapRegion();
        _region.AddHolder(this);
        using var lease = _region.Lease();
        Assert.Equal(0, Userfaultfd.TryRegister(_uffd.Number, lease.Address, lease.Length, mode));
    }

    public SafeDescriptor Descriptor => _uffd;

    string IRegionHolder.Description => "a peer of a test";

    bool IRegionHolder.IsLive => !_uffd.IsClosed;

    bool IRegionHolder.ProvidesPages => true;

    void IRegionHolder.Release(MmapRegion region) => Unregister();

    public void Connect(string path) => Assert.Equal(0, UnixSocket.TryConnect(_socket, path));

    public void Send(IReadOnlyList<GuestRegionUffdMapping> mappings) => Send(UffdMappingList.ToJson(mappings), 1);

    public void Send(string text, int userfaultfds) => Send(Encoding.UTF8.GetBytes(text), userfaultfds);

    /// <summary>Sends all of it, with so many duplicates of the userfaultfd at its first byte. A handler that hangs up ends it early.</summary>
    public void Send(ReadOnlySpan<byte> data, int userfaultfds)
    {
        var descriptors = Enumerable.Repeat(_uffd.Number, userfaultfds).ToArray();
        for (var sent = 0; sent < data.Length;)
        {
            var result = UnixSocket.TrySend(_socket, data[sent..], sent == 0 ? descriptors : []);
            if (result <= 0) return;
            sent += (int)result;
        }
    }

    /// <summary>Sends all of it with the userfaultfd and further descriptors.</summary>
    public void SendWith(string text, params SafeHandle[] descriptors) =>
        _ = UnixSocket.TrySend(_socket, Encoding.UTF8.GetBytes(text), [_uffd.Number, .. descriptors.Select(static descriptor => (int)descriptor.DangerousGetHandle())]);

    /// <summary>Write-protects the present pages of a range, as a VMM does that wants to know what is written.</summary>
    public void Protect(ulong start, ulong length) => Assert.Equal(0, Userfaultfd.TryProtect(_uffd.Number, start, length));

    public void SendDescriptor(SafeDescriptor descriptor, string text) => _ = UnixSocket.TrySend(_socket, Encoding.UTF8.GetBytes(text), [descriptor.Number]);

    /// <summary>Whether the handler has ended the connection.</summary>
    public bool IsHungUp
    {
        get
        {
            Span<PollFd> entry = [new PollFd { fd = _socket.Number, events = Poll.POLLRDHUP }];
            return Poll.Wait(entry, 0) > 0;
        }
    }

    /// <summary>Closes the socket and lives on, as Firecracker did until March 2025 (PR #5122).</summary>
    public void CloseSocket() => _socket.Dispose();

    /// <summary>Makes the userfaultfd, which the handler has a duplicate of, a blocking one.</summary>
    public void MakeBlocking() => Assert.Equal(0, Fcntl.MakeBlocking(_uffd.Number));

    /// <summary>This process lives on: the handler notices the end of the VM by its memory, which is no longer registered.</summary>
    public void Dispose()
    {
        Unregister();
        _uffd.Dispose();
        _socket.Dispose();
    }

    private void Unregister()
    {
        // Later another region may lie there.
        if (_region is null || _isReleased) return;
        _isReleased = true;
        Assert.Equal(0, Userfaultfd.TryUnregister(_uffd.Number, _region.HostAddress, _region.Size));
    }
}
