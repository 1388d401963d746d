using System.Numerics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.VhostUser;

/// <content>The virtqueues.</content>
public sealed partial class VhostUserConnection
{
    // A ring has 8 bits in the messages that carry its descriptors.
    private const int MaxQueues = 256;

    private readonly VhostUserVringState[] _states;
    private readonly VhostUserVring?[] _running;

    private List<VhostUserVring> Running => [.. _running.OfType<VhostUserVring>()];

    private byte[]? ExecuteVring(VhostUserMessage message)
    {
        switch (message.Request)
        {
            case VhostUserRequest.SetVringNum:
                SetSize(message.Body<VhostVringState>());
                return null;
            case VhostUserRequest.SetVringAddr:
                SetAddress(message.Body<VhostVringAddr>());
                return null;
            case VhostUserRequest.SetVringBase:
                SetBase(message.Body<VhostVringState>());
                return null;
            case VhostUserRequest.GetVringBase:
                return BytesOf(GetBase(message.Body<VhostVringState>()));
            case VhostUserRequest.SetVringKick:
                SetKick(message);
                return null;
            case VhostUserRequest.SetVringCall:
                SetCall(message);
                return null;
            case VhostUserRequest.SetVringErr:
                SetError(message);
                return null;
            case VhostUserRequest.SetVringEnable:
                SetEnabled(message.Body<VhostVringState>());
                return null;
            default:
                throw new GuestMemoryException(GuestMemoryError.InactiveOperation, $"The request {message.Request} was not offered.");
        }
    }

    private void SetSize(VhostVringState request)
    {
        var index = StoppedIndex(request.index);
        if (!BitOperations.IsPow2(request.num) || request.num > (uint)_device.MaxQueueSize)
            throw Invalid($"Virtqueue {index} cannot have {request.num} descriptors: a power of two up to {_device.MaxQueueSize} is expected.");
        _states[index] = _states[index] with { Size = (ushort)request.num };
    }

    private void SetAddress(VhostVringAddr address)
    {
        var index = Index(address.index);
        if ((address.flags & ~(1U << Vhost.VHOST_VRING_F_LOG)) != 0) throw Invalid($"Virtqueue {index} has the unknown flags 0x{address.flags:x} with its addresses.");
        if (address.desc_user_addr % 16 != 0 || address.avail_user_addr % 2 != 0 || address.used_user_addr % 4 != 0)
        {
            throw Invalid($"The addresses of virtqueue {index} are not aligned: descriptor table 0x{address.desc_user_addr:x} (16 bytes), "
                + $"available ring 0x{address.avail_user_addr:x} (2), used ring 0x{address.used_user_addr:x} (4).");
        }

        var state = _states[index] with { Address = address };
        state.Translate(_memory);
        Change(index, state);
    }

    private void SetBase(VhostVringState request)
    {
        var index = StoppedIndex(request.index);
        if (request.num > ushort.MaxValue) throw Invalid($"Virtqueue {index} cannot begin at entry {request.num}: an index has 16 bits.");
        _states[index] = _states[index] with { NextAvailable = (ushort)request.num };
    }

    private VhostVringState GetBase(VhostVringState request)
    {
        var index = Index(request.index);
        StopVring(index);
        var state = _states[index];
        _states[index] = state with { Kick = null, Call = null };
        state.Kick?.Dispose();
        state.Call?.Dispose();
        return new VhostVringState { index = request.index, num = state.NextAvailable };
    }

    private void SetKick(VhostUserMessage message)
    {
        var index = Index(VhostUserLayout.Vring(message));
        var kick = TakeEvent(message)
            ?? throw new GuestMemoryException(GuestMemoryError.InactiveOperation, $"Virtqueue {index} came without a kick descriptor: polling was not offered.");
        var former = _states[index].Kick;
        try
        {
            Change(index, _states[index] with { Kick = kick });
        }
        catch
        {
            kick.Dispose();
            throw;
        }

        former?.Dispose();
    }

    private void SetCall(VhostUserMessage message)
    {
        var index = Index(VhostUserLayout.Vring(message));
        var call = TakeEvent(message);
        var former = _states[index].Call;
        _states[index] = _states[index] with { Call = call };
        _running[index]?.SetCall(call);
        former?.Dispose();
    }

    private void SetError(VhostUserMessage message)
    {
        var index = Index(VhostUserLayout.Vring(message));
        var error = TakeEvent(message);
        var former = _states[index].Error;
        _states[index] = _states[index] with { Error = error };
        _running[index]?.SetError(error);
        former?.Dispose();
    }

    private void SetEnabled(VhostVringState request)
    {
        var index = Index(request.index);
        if ((Features & ProtocolFeaturesBit) == 0)
            throw new GuestMemoryException(GuestMemoryError.InactiveOperation, "Virtqueues are enabled one by one only where protocol features were negotiated.");
        if (request.num > 1) throw Invalid($"Virtqueue {index} is enabled by 1 and disabled by 0, not by {request.num}.");
        Change(index, _states[index] with { Enabled = request.num == 1 });
    }

    /// <summary>Changes what is known of a virtqueue, which does not run meanwhile; where it could not run afterwards, nothing changes.</summary>
    private void Change(int index, VhostUserVringState state)
    {
        CheckRuns(index, state);
        StopVring(index);
        _states[index] = state with { NextAvailable = _states[index].NextAvailable };
        StartVring(index);
    }

    private void CheckRuns(int index, VhostUserVringState state)
    {
        if (!state.CanRun) return;
        CheckInflight(index, state);
        _log.Check(Vring(index, state));
    }

    private void CheckEnabled()
    {
        for (var i = 0; i < _states.Length; i++) CheckRuns(i, _states[i] with { Enabled = true });
    }

    private void EnableVrings()
    {
        for (var i = 0; i < _states.Length; i++)
        {
            if (!_states[i].Enabled) Change(i, _states[i] with { Enabled = true });
        }
    }

    private void DisableVrings()
    {
        for (var i = 0; i < _states.Length; i++) Change(i, _states[i] with { Enabled = false });
    }

    private void StopVrings()
    {
        for (var i = 0; i < _running.Length; i++) StopVring(i);
    }

    private void StartVring(int index)
    {
        if (!_states[index].CanRun) return;
        var vring = Vring(index, _states[index]);
        _log.Cover(vring);
        try
        {
            _device.StartVring(vring);
        }
        catch (Exception exception)
        {
            // Front ends do not expect that, and many ask for no reply: the guest would wait for ever.
            Fail(exception);
            throw;
        }

        _running[index] = vring;
    }

    private void StopVring(int index)
    {
        if (_running[index] is not { } vring) return;
        _device.StopVring(vring);
        _running[index] = null;
        vring.SetTracker(null);
        _states[index] = _states[index] with { NextAvailable = vring.NextAvailable };
    }

    private VhostUserVring Vring(int index, VhostUserVringState state) => new(index, _memory.Guest, state, state.Translate(_memory), Features, _log, Fail, ReleaseIfEnded) { Inflight = _inflight?.Queue(index) };

    private int Index(uint index) => index < _states.Length ? (int)index : throw Invalid($"There is no virtqueue {index}; the device has {_states.Length}.");

    private int StoppedIndex(uint number)
    {
        var index = Index(number);
        return _running[index] is null ? index : throw new GuestMemoryException(GuestMemoryError.InvalidOperation, $"Virtqueue {index} runs; stop it first.");
    }

    /// <summary>Takes the eventfd of a message; null where none came.</summary>
    private static SafeDescriptor? TakeEvent(VhostUserMessage message)
    {
        if (message.Descriptors.Count == 0) return null;
        // Another kind of file could make a thread of the device wait for ever.
        if (!EventFd.IsEventFd(message.Descriptors[0]))
            throw new GuestMemoryException(GuestMemoryError.IncorrectFds, $"The descriptor of the message {message.Request} is not an eventfd.");
        UnixSocket.SetNonBlocking(message.Descriptors[0]);
        return message.TakeDescriptor();
    }

    private static GuestMemoryException Invalid(string message) => new(GuestMemoryError.InvalidParam, message);
}
