using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>Makes a record of each VM that is handed over for an image, and ends those whose connection ends.</summary>
internal sealed class VmReceiver : IHandoverOwner
{
    /// <summary>The name under which a service manager keeps the listening socket that was made here.</summary>
    public const string StoredListener = "listener";

    /// <summary>The name under which a successor is given one that a service manager made.</summary>
    public const string ForeignListener = "socket";

    private readonly ServedImage _image;
    private readonly Supply _supply;
    private readonly VmRecords _vms;

    private VmReceiver(ServedImage image, Supply supply)
    {
        _image = image;
        _supply = supply;
        _vms = supply.Vms;
    }

    public int ConnectionCount => _supply.Connected();

    public int VmCount => _vms.Count;

    /// <summary>Takes over what came with this process, a listening socket and VMs, or listens afresh.</summary>
    /// <param name="image">What the VMs that come are served from.</param>
    /// <param name="supply">What the listeners of a handler share.</param>
    /// <param name="systemd">The service manager, and what came from it.</param>
    /// <param name="restored">VMs that came with this process.</param>
    /// <param name="acceptTimeout">How long the first VMM may take to connect; null for ever.</param>
    public static HandoverListener Open(ServedImage image, Supply supply, Systemd systemd, IReadOnlyCollection<VmRecord> restored, TimeSpan? acceptTimeout)
    {
        var options = supply.Options;
        var inherited = Inherited(image, options, systemd);
        var socket = inherited ?? UnixListener.Open(image.Options.SocketPath, Allowed(options), options.Force);
        var receiver = new VmReceiver(image, supply);
        var listener = new HandoverListener(image.Name, socket, options, acceptTimeout, receiver);
        listener.Open(supply.Epoll);
        if (systemd.IsThere && inherited is null) systemd.Store(image.Prefix + StoredListener, socket.Socket);
        foreach (var vm in restored.Where(vm => vm.Image == image)) receiver.GoOn(listener, vm);
        return listener;
    }

    public int CountVms(UffdConnection connection) => _vms.Count(vm => vm.Connection == connection);

    public void Take(HandoverListener listener, UffdConnection connection, UffdHandover handover)
    {
        VmRecord vm;
        try
        {
            UffdMappingList.Validate(handover.Mappings, _image.Length);
            var id = _vms.NextId();
            vm = VmRecord.Create(id, UffdVmName.Choose(connection.Peer.pid, listener.Path, id, _vms.Names()), connection, handover);
            (vm.Image, vm.Connection) = (_image, connection);
        }
        catch
        {
            handover.Close();
            throw;
        }

        _vms.Add(vm);
        _supply.VmAdded(vm);
    }

    public void Ended(UffdConnection connection)
    {
        foreach (var vm in _vms.Where(vm => vm.Connection == connection)) _vms.Remove(vm);
    }

    public void Failed(string error, uint? user) => _supply.Failed(error, user);

    /// <summary>Goes on with a VM that an earlier process had.</summary>
    private void GoOn(HandoverListener listener, VmRecord vm)
    {
        var peer = new UCred { pid = vm.List.ProcessId, uid = vm.List.User, gid = vm.List.Group };
        vm.Connection = new UffdConnection(vm.Socket, vm.Process, peer, _supply.Options.HandoverTimeout, new UffdHandover(vm.List.Mappings, vm.Userfaultfd));
        listener.Add(vm.Connection);
        if (vm.List.Name is null) vm.List = vm.List with { Name = UffdVmName.Choose(peer.pid, listener.Path, vm.Id, _vms.Names()) };
        _vms.Add(vm);
    }

    /// <summary>The listening socket of the image among what came with this process: by its name, or for the image without a prefix any that is no other one's.</summary>
    private static UnixListener? Inherited(ServedImage image, UffdHandlerOptions options, Systemd systemd)
    {
        foreach (var item in systemd.Descriptors.ToArray())
        {
            var (prefix, name) = ServedImage.Split(item.Name);
            // A service manager that makes the sockets of several images calls each as the image (FileDescriptorName=).
            var isNamed = prefix.Length == 0 && image.Options.IsCalled(name) && name is not (StoredListener or ForeignListener);
            if (!isNamed && prefix != image.Prefix) continue;
            if (!isNamed && prefix.Length > 0 && name is not (StoredListener or ForeignListener)) continue;
            if (UnixSocket.ListeningPath(item.Descriptor) is not { } path) continue;
            systemd.Descriptors.Remove(item);
            return UnixListener.Adopt(item.Descriptor, path, Allowed(options), isOurs: name == StoredListener && !isNamed);
        }

        return null;
    }

    /// <summary>What the listeners of a handler share.</summary>
    /// <param name="Options">The handler's.</param>
    /// <param name="Epoll">What waits for the descriptors.</param>
    /// <param name="Vms">Where VMs go.</param>
    /// <param name="Connected">How many VMMs are connected to all of them.</param>
    /// <param name="VmAdded">Called with each VM that hands its memory over.</param>
    /// <param name="Failed">Called with what goes wrong, and with the user whose process has caused it; null where none has.</param>
    internal sealed record Supply(UffdHandlerOptions Options, Epoll Epoll, VmRecords Vms, Func<int> Connected, Action<VmRecord> VmAdded, Action<string, uint?> Failed);

    /// <summary>Who may connect beside the user of this process and root.</summary>
    private static AllowedPeers Allowed(UffdHandlerOptions options) =>
        AllowedPeers.Find(options.User is null ? options.AllowUser : [.. options.AllowUser, options.User], options.AllowGroup);
}
