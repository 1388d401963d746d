using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <content>VMMs that come and go, and the VMs that they hand over.</content>
internal sealed partial class UffdServer
{
    private bool Accept(UffdEntrance entrance)
    {
        while (entrance.TryAccept(_connections.Count, out var connection))
        {
            lock (_lock) _connections.Add(connection);
            connection.Watch(_epoll, connection);
        }

        // What is due has changed in any case.
        return true;
    }

    /// <summary>Takes hand-overs from a connection; true when something is to be settled.</summary>
    private bool Receive(UffdConnection connection)
    {
        try
        {
            var changed = false;
            // What was read may hold more than one.
            while (connection.TryReceive(out var handover))
            {
                var vm = Create(handover);
                lock (_lock) connection.Add(vm);
                Begin(vm);
                changed = true;
            }

            return changed || connection.IsEnded;
        }
        catch (GuestMemoryException exception)
        {
            _error = $"Process {connection.Peer.pid} of user {connection.Peer.uid}: {exception.Message}";
            connection.Refuse();
            return true;
        }
    }

    private UffdVm Create(UffdHandover handover)
    {
        UffdVmState? state = null;
        try
        {
            UffdMappingList.Validate(handover.Mappings, _source.Length);
            state = new UffdVmState(UffdVmState.PagesOf(handover.Mappings));
            var vm = new UffdVm(handover.Userfaultfd, handover.Mappings, state, _source, _policy);
            // It is filled by its userfaultfd like any other.
            handover.Memory?.Dispose();
            return vm;
        }
        catch
        {
            state?.Dispose();
            handover.Close();
            throw;
        }
    }

    private void Begin(UffdVm vm)
    {
        _epoll.Add(vm.Descriptor, vm);
        _filler?.Add(vm);
        Interlocked.Increment(ref _accepted);
    }

    private void TakeAdopted()
    {
        while (_adopted.TryDequeue(out var connection))
        {
            lock (_lock) _connections.Add(connection);
            connection.Watch(_epoll, connection);
            foreach (var vm in connection.Vms)
            {
                vm.RecordWhatCame();
                Begin(vm);
            }
        }
    }

    private void Close(UffdConnection connection)
    {
        foreach (var vm in connection.Vms)
        {
            _filler?.Remove(vm);
            _ended.Add(ref vm.Counters);
            _ended.QueueDepth = 0;
            _endedLatency.Add(vm.Latency);
            _error ??= vm.Error;
            _epoll.Remove(vm.Descriptor);
            Ended?.Invoke(vm);
        }

        if (_policy.Recorder?.TrySave() is { } error) _error = error;
        connection.Unwatch();
        _connections.Remove(connection);
        connection.Dispose();
    }
}
