using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <content>VMMs that come and go, and the VMs that they hand over. All of it is the handler's thread's.</content>
internal sealed partial class UffdServer
{
    private void Accept(UffdImageService image)
    {
        while (image.Acceptor!.TryAccept(_connections.Count, out var connection))
        {
            foreach (var other in _images) other.Acceptor?.StopWaiting();
            try
            {
                connection.Image = image;
                connection.Watch(_epoll, connection);
            }
            catch (SyscallException exception)
            {
                _error = exception.Message;
                connection.Unwatch();
                connection.Dispose();
                continue;
            }

            lock (_lock) _connections.Add(connection);
        }
    }

    /// <summary>Takes hand-overs from a connection, or its end.</summary>
    private void Receive(UffdConnection connection)
    {
        try
        {
            // What was read may hold more than one.
            while (!connection.IsEnded && connection.TryReceive(out var handover)) Take(connection, handover);
        }
#pragma warning disable CA1031 // Whatever a VMM sends ends its connection and no other.
        catch (Exception exception)
        {
            _error = $"Process {connection.Peer.pid} of user {connection.Peer.uid}: {exception.Message}";
            connection.Refuse();
        }
#pragma warning restore CA1031

        if (connection.IsEnded) End(connection);
    }

    /// <summary>Serves a VM that was handed over, unless there are too many.</summary>
    private void Take(UffdConnection connection, UffdHandover handover)
    {
        var own = _services.Count(service => service.Connection == connection);
        var image = connection.Image!;
        if ((image.IsRemoved ? $"A VM of process {connection.Peer.pid} was refused: the image '{image.Name}' is being removed." : image.Acceptor!.WhyRefused(connection.Peer, _services.Count, own)) is { } why)
        {
            handover.Close();
            _error = why;
            // The VMs that came before go on.
            if (own == 0) connection.IsEnded = true;
            return;
        }

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
            lock (_lock) _connections.Add(service.Connection);
            Start(service);
            try
            {
                service.Connection.Watch(_epoll, service.Connection);
            }
            catch (SyscallException exception)
            {
                // Its end is noticed all the same, when a page cannot be filled.
                _error = exception.Message;
            }
        }
    }

    /// <summary>A connection has ended, and with it the VMs that came over it; each service ends in its own time, and the last one closes the connection.</summary>
    private void End(UffdConnection connection)
    {
        connection.IsEnded = true;
        connection.Unwatch();
        // The VMM need not wait; an adopted connection is a duplicate of what somebody else goes on with.
        if (!connection.IsAdopted) UnixSocket.Shutdown(connection.Socket);
        foreach (var service in _services)
        {
            if (service.Connection == connection) service.Stop();
        }

        CloseIfDone(connection);
    }

    /// <summary>The service of a VM has ended: does what was ordered for a VM that cannot be served, and forgets it.</summary>
    private void End(UffdVmService service)
    {
        var (vm, connection) = (service.Vm, service.Connection);
        var (verdict, error) = (vm.Verdict, vm.Error);
        Remove(service);
        if (verdict is not null && error is not null) _error = error;
        if (verdict == UffdOnError.Stop) throw new GuestMemoryException(GuestMemoryError.HandlerFailed, error!);
        // Each of the other VMs that came over the connection notices its own end.
        if (!connection.IsEnded && !_services.Exists(other => other.Connection == connection)) End(connection);
        else CloseIfDone(connection);
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

    private void CloseIfDone(UffdConnection connection)
    {
        if (connection.IsEnded && !_services.Exists(service => service.Connection == connection)) Close(connection);
    }

    private void Close(UffdConnection connection)
    {
        lock (_lock)
        {
            if (!_connections.Remove(connection)) return;
        }

        connection.Unwatch();
        connection.Dispose();
    }
}
