using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Userfault;

/// <content>What an operator asks of one VM. For any thread, but for <see cref="FollowOrders"/>.</content>
internal sealed partial class UffdServer
{
    /// <summary>Has the service of a VM end; see <see cref="UffdVm.StopServing"/>.</summary>
    /// <param name="vm">The VM, which may not be served yet.</param>
    /// <param name="action">Kill or Poison.</param>
    public void StopVm(UffdVm vm, UffdOnError action)
    {
        _orders.Enqueue((vm, action));
        Wake();
    }

    /// <summary>The same for a VM by its number.</summary>
    /// <exception cref="GuestMemoryException">VmNotFound.</exception>
    public void StopVm(int id, UffdOnError action)
    {
        lock (_lock) StopVm(Find(id).Vm, action);
    }

    /// <summary>Gives a VM another name, or has something else follow where a page of it cannot be read.</summary>
    /// <exception cref="GuestMemoryException">VmNotFound, NameInUse.</exception>
    public void SetVm(int id, string? name, UffdOnError? onError)
    {
        lock (_lock)
        {
            var service = Find(id);
            if (name is not null)
            {
                if (Names(except: service).Contains(name, StringComparer.OrdinalIgnoreCase)) throw UffdVmName.InUse(name, Place);
                service.Identity!.Name = name;
            }

            if (onError is { } action) service.Vm.OnError = action;
        }
    }

    /// <summary>Whether it serves a VM, or is about to end that.</summary>
    public bool HasVm(int id)
    {
        lock (_lock) return _services.Exists(service => service.Identity?.Id == id);
    }

    /// <summary>What the memory of a VM is read by.</summary>
    /// <param name="id">The VM's number.</param>
    /// <exception cref="GuestMemoryException">VmNotFound, MemoryNotShared.</exception>
    public UffdVmFiles OpenFiles(int id)
    {
        SafeDescriptor? memory = null, state = null;
        try
        {
            IReadOnlyList<GuestRegionUffdMapping> mappings;
            PageSource image;
            lock (_lock)
            {
                var service = Find(id);
                var identity = service.Identity!;
                if (identity.Memory is null || identity.State is null) throw UffdServedVm.NotShared(identity.Name, Place);
                memory = Memfd.OpenReadOnly(identity.Memory);
                state = Memfd.OpenReadOnly(identity.State);
                mappings = service.Vm.Mappings;
                image = service.Image.Open();
            }

            return new UffdVmFiles(memory, state, mappings, image);
        }
        catch
        {
            memory?.Dispose();
            state?.Dispose();
            throw;
        }
    }

    /// <summary>Begins to export the memory of a VM that runs.</summary>
    /// <param name="id">The VM's number.</param>
    /// <param name="output">The file, as long as the memory and all zeros; stays the caller's.</param>
    /// <exception cref="GuestMemoryException">VmNotFound, MemoryNotShared, LiveUnsupported, LiveBusy.</exception>
    public UffdLiveExport BeginLive(int id, SafeFileHandle output)
    {
        var files = OpenFiles(id);
        SafeFileHandle? information = null;
        UffdVmService service;
        try
        {
            lock (_lock)
            {
                service = Find(id);
                using var lease = new DescriptorLease(service.Vm.Descriptor);
                information = File.OpenHandle($"/proc/self/fdinfo/{lease.Number}");
            }
        }
        catch
        {
            information?.Dispose();
            files.Leave();
            throw;
        }

        return new LocalLiveExport(service, files, output, information);
    }

    /// <summary>The same where another process has opened what it needs.</summary>
    /// <param name="vm">The VM.</param>
    /// <param name="output">The file; stays the caller's.</param>
    /// <param name="memory">The VM's memfd, open for reading; taken over.</param>
    /// <param name="state">Its state, open for reading; taken over.</param>
    /// <param name="information">The fdinfo of its userfaultfd; taken over.</param>
    /// <exception cref="GuestMemoryException">VmNotFound, LiveUnsupported, LiveBusy.</exception>
    public UffdLiveExport BeginLive(UffdVm vm, SafeFileHandle output, SafeDescriptor memory, SafeDescriptor state, SafeDescriptor information)
    {
        UffdVmService service;
        lock (_lock)
        {
            service = _services.Find(service => service.Vm == vm && !service.IsEnding)
                ?? throw new GuestMemoryException(GuestMemoryError.VmNotFound, "The VM is not served any more, or not yet.");
        }

        var files = new UffdVmFiles(memory, state, vm.Mappings, service.Image.Source, isBorrowed: true);
        var opened = new SafeFileHandle(information.Number, ownsHandle: true);
        information.SetHandleAsInvalid();
        return new LocalLiveExport(service, files, output, opened);
    }

    private UffdVmService Find(int id) => _services.Find(service => service.Identity?.Id == id && !service.IsEnding) ?? throw UffdServedVm.NotFound(id, Place);

    private string[] Names(UffdVmService? except) => [.. _services.Where(service => service != except).Select(static service => service.Identity?.Name ?? "")];

    /// <summary>Does what was ordered. For the handler's thread, after it has started the VMs that it adopted.</summary>
    private void FollowOrders()
    {
        while (_orders.TryDequeue(out var order)) _services.Find(service => service.Vm == order.Vm)?.StopAs(order.Action);
    }

    private UffdFigures Figures(UffdVmService service) => service.Vm.State.Figures(service.Connection.Peer.pid, service.Vm.Error, service.Identity?.State) with
    {
        VmId = service.Identity?.Id ?? 0,
        VmName = service.Identity?.Name,
        Image = service.Image.Name,
        SharesMemory = service.Identity?.Memory is not null,
        IsLimited = service.Vm.State.IsLimited,
        OnError = service.Vm.OnError,
    };
}
