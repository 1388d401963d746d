using System.Diagnostics;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <content>What an operator asks of one VM, or of an image.</content>
internal sealed partial class Supervisor
{
    // How long faults that waited may keep the handler from saying that it is ready, and how many workers may end meanwhile.
    private static readonly TimeSpan s_catchUpLimit = TimeSpan.FromSeconds(10);
    private const int MaxCatchUpWorkers = 2;

    private bool _isCatchingUp;

    /// <summary>
    /// Waits until the faults are answered that waited of the VMs that came with this process: what restarts it again as soon as it is ready must not keep
    /// them waiting. No longer than the limit, since a VM that cannot be served must not stand in the way of others.
    /// </summary>
    private void CatchUp()
    {
        var behind = _vms.ToList();
        var (started, workers) = (Stopwatch.GetTimestamp(), _workers);
        _isCatchingUp = true;
        while (!_stopping && _failure is null && _workers - workers < MaxCatchUpWorkers)
        {
            _ = behind.RemoveAll(vm => vm.IsCaughtUp || _vms.Find(vm.Id) != vm);
            var left = s_catchUpLimit - Stopwatch.GetElapsedTime(started);
            if (behind.Count == 0 || left <= TimeSpan.Zero) break;
            // -1 is never.
            _ = Step((int)Math.Min((uint)Timeout(), (uint)Math.Ceiling(left.TotalMilliseconds)));
        }

        _isCatchingUp = false;
    }

    private VmRecord Find(int id) => _vms.Find(id) ?? throw UffdServedVm.NotFound(id, Place);

    private (UffdControlReply Reply, SafeDescriptor? File) OfVm(UffdControlRequest request)
    {
        if (request.Request == UffdControlRequest.RemoveImage)
        {
            RemoveImage(request);
            return (new UffdControlReply(), null);
        }

        var vm = Find(request.Vm);
        switch (request.Request)
        {
            case UffdControlRequest.SetVm:
                SetVm(vm, request);
                return (new UffdControlReply(), null);
            case UffdControlRequest.StopVm:
                StopVm(vm, request);
                return (new UffdControlReply(), null);
            case UffdControlRequest.Live:
                return (new UffdControlReply(), BeginLive(vm));
            default:
                return Part(vm, request);
        }
    }

    /// <summary>A part by which the memory of a VM is read. A client of the control socket may read it, and not write it.</summary>
    private (UffdControlReply Reply, SafeDescriptor? File) Part(VmRecord vm, UffdControlRequest request)
    {
        switch (request.WhichPart)
        {
            case UffdControlRequest.Memory:
                return (new UffdControlReply(), Memfd.OpenReadOnly(vm.MemoryFile ?? throw UffdServedVm.NotShared(vm.List.Name ?? "", Place)));
            case UffdControlRequest.State:
                return (new UffdControlReply(), Memfd.OpenReadOnly(vm.StateFile));
            case UffdControlRequest.Mappings:
                return (new UffdControlReply(), UffdMappingList.ToFile(vm.List.Mappings));
            case UffdControlRequest.Image when vm.Image.Files is { Files: var files } && vm.Image.Failure is null && request.Number >= 0 && request.Number < files.Count:
                var file = files[request.Number];
                return (new UffdControlReply { Number = files.Count, Path = file.Path, Part = file.Part }, file.Duplicate().Descriptor);
            default:
                throw new GuestMemoryException(GuestMemoryError.ControlFailed, "The parts of a VM are memory, state, mappings, and image with the number of a file.");
        }
    }

    /// <summary>Has the worker that serves a VM export its memory; the connection on which that is asked for.</summary>
    private SafeDescriptor BeginLive(VmRecord vm)
    {
        if (!_options.TrackDirty) throw UffdHandler.NotTracking(Place);
        if (vm.MemoryFile is null) throw UffdServedVm.NotShared(vm.List.Name ?? "", Place);
        if (!vm.IsOffered || _worker is not { } worker)
            throw new GuestMemoryException(GuestMemoryError.LiveFailed, "No worker serves the VM at this moment; the next one does soon. Export again.");
        var (near, far) = UnixSocket.CreatePair(nonBlocking: true, UnixSocket.SOCK_STREAM);
        using (far)
        {
            try
            {
                using var memory = Memfd.OpenReadOnly(vm.MemoryFile);
                using var state = Memfd.OpenReadOnly(vm.StateFile);
                // The worker may open no file; this one tells the same of the VM's userfaultfd.
                using var information = File.OpenHandle($"/proc/self/fdinfo/{vm.Userfaultfd.Number}");
                using var lease = new DescriptorLease(information);
                var opened = new SafeDescriptor(lease.Number);
                var isSent = worker.Channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Live, Vm = vm.Id }, far, memory, state, opened);
                opened.SetHandleAsInvalid();
                return isSent ? near : throw new GuestMemoryException(GuestMemoryError.LiveFailed, "The worker that serves the VM does not answer. Export again.");
            }
            catch
            {
                near.Dispose();
                throw;
            }
        }
    }

    private void SetVm(VmRecord vm, UffdControlRequest request)
    {
        if (request.Name is { } name)
        {
            UffdVmName.Check(name);
            if (_vms.Names(except: vm).Contains(name, StringComparer.OrdinalIgnoreCase)) throw UffdVmName.InUse(name, Place);
            vm.Set(vm.List with { Name = name });
        }

        if (request.OnError is not { } onError) return;
        vm.Set(vm.List with { OnError = onError });
        SendOrder(vm, ChannelMessageType.SetVm, onError);
    }

    private void StopVm(VmRecord vm, UffdControlRequest request)
    {
        if (request.OnError is not { } action || action == UffdOnError.Stop)
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, "A VM is stopped by killing it (Kill), or by poisoning what has not come of it (Poison).");
        StopVm(vm, action);
    }

    private void StopVm(VmRecord vm, UffdOnError action)
    {
        Log.Lines.VmStopped(vm.Id, vm.List.Name ?? "", vm.List.ProcessId, action);
        vm.Order = action;
        SendOrder(vm, ChannelMessageType.StopVm, action);
    }

    /// <summary>Tells the worker that has the VM; another one is told when it is given the VM.</summary>
    private void SendOrder(VmRecord vm, ChannelMessageType type, UffdOnError action)
    {
        if (vm.IsOffered && _worker is { } worker && !worker.Channel.TrySend(new ChannelMessage { Type = type, Vm = vm.Id, OnError = action })) worker.Kill();
    }
}
