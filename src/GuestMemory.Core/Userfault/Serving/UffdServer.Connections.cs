using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <content>VMMs that come and go, and the VMs that they hand over. All of it is the handler's thread's.</content>
internal sealed partial class UffdServer
{
    int IHandoverOwner.ConnectionCount => _images.Sum(static image => image.Handovers.ConnectionCount);

    int IHandoverOwner.VmCount => _services.Count;

    int IHandoverOwner.CountVms(UffdConnection connection) => _services.Count(service => service.Connection == connection);

    void IHandoverOwner.Failed(string error, uint? user) => _error = error;

    /// <summary>Each service ends in its own time; the last one closes the connection.</summary>
    void IHandoverOwner.Ended(UffdConnection connection)
    {
        foreach (var service in _services)
        {
            if (service.Connection == connection) service.Stop();
        }
    }

    void IHandoverOwner.Take(HandoverListener listener, UffdConnection connection, UffdHandover handover)
    {
        var image = _images.Find(image => image.Handovers == listener)!;
        var id = _accepted + 1;
        var vm = Create(handover, image, out var file);
        try
        {
            string name;
            lock (_lock) name = UffdVmName.Choose(connection.Peer.pid, image.Options.SocketPath, id, Names(except: null));
            Start(new UffdVmService(vm, connection, image, _helpers, Failed, Finish, new UffdVmIdentity(id, name, handover.Memory, file)));
        }
        catch
        {
            vm.Dispose();
            handover.Memory?.Dispose();
            file?.Dispose();
            throw;
        }
    }

    /// <summary>A VM that has just come; where its memory can be read, with the memfd of its state.</summary>
    private static UffdVm Create(UffdHandover handover, UffdImageService image, out SafeDescriptor? file)
    {
        UffdVmState? state = null;
        file = null;
        try
        {
            UffdMappingList.Validate(handover.Mappings, image.Source.Length);
            var pages = UffdVmState.PagesOf(handover.Mappings);
            file = handover.Memory is null ? null : Memfd.CreateSealed("uffd-state", (long)UffdVmState.SizeOf(pages), 0);
            state = new UffdVmState(pages, file, isNew: true);
            return new UffdVm(handover.Userfaultfd, handover.Mappings, state, image.Source, image.Policy);
        }
        catch
        {
            state?.Dispose();
            file?.Dispose();
            handover.Close();
            throw;
        }
    }

    private void Start(UffdVmService service)
    {
        lock (_lock) _services.Add(service);
        Interlocked.Increment(ref _accepted);
        service.Start();
    }

    private void StartAdopted()
    {
        while (_adopted.TryDequeue(out var service))
        {
            Start(service);
            try
            {
                service.Image.Handovers.Add(service.Connection);
            }
            catch (SyscallException exception)
            {
                // Its end is noticed all the same, when a page cannot be filled.
                _error = exception.Message;
            }
        }
    }

    /// <summary>The service of a VM has ended: does what was ordered for a VM that cannot be served, and forgets it.</summary>
    private void End(UffdVmService service)
    {
        var vm = service.Vm;
        var (verdict, error) = (vm.Verdict, vm.Error);
        Remove(service);
        if (verdict is not null && error is not null) _error = error;
        if (verdict == UffdOnError.Stop) throw new GuestMemoryException(GuestMemoryError.HandlerFailed, error!);
        // Each of the other VMs that came over the connection notices its own end.
        service.Image.Handovers.VmEnded(service.Connection);
        CloseIfUnused(service.Image);
    }

    /// <summary>Adds what a VM counted to what is kept of those that have ended, and closes all that it had.</summary>
    private void Remove(UffdVmService service)
    {
        lock (_lock)
        {
            service.Image.Ended.Add(ref service.Vm.Counters, service.Vm.Latency);
            _error ??= service.Vm.Error;
            _services.Remove(service);
        }

        Ended?.Invoke(service.Vm);
        service.Dispose();
        if (service.Image.Policy.Recorder?.TrySave() is { } error) _error = error;
    }
}
