using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

/// <summary>One VMM's connection to a handler, and the VMs it handed over. The end of the stream is the end of the VMM.</summary>
internal sealed class UffdConnection : IDisposable
{
    private readonly UffdHandoverReceiver _receiver;
    private readonly TimeSpan _limit;
    private readonly SafeDescriptor? _process;
    private long _deadline;

    /// <param name="socket">The connection; owned from here on.</param>
    /// <param name="peer">Who is at its other end.</param>
    /// <param name="process">The same as a process that can be killed; null where that is not wanted.</param>
    /// <param name="limit">How long a hand-over may take.</param>
    public UffdConnection(SafeDescriptor socket, UCred peer, SafeDescriptor? process, TimeSpan limit)
    {
        _process = process;
        Socket = socket;
        Peer = peer;
        _receiver = new UffdHandoverReceiver(socket);
        _limit = limit;
        _deadline = Deadline();
    }

    public SafeDescriptor Socket { get; }

    public UCred Peer { get; }

    public List<UffdVm> Vms { get; } = [];

    public bool IsEnded { get; set; }

    public bool IsOverdue => _deadline != 0 && Stopwatch.GetTimestamp() >= _deadline;

    /// <summary>How long the hand-over may still take, rounded up; null where none is awaited.</summary>
    public int? MillisecondsLeft => _deadline == 0 ? null
        : (int)Math.Max(0, Math.Ceiling(Stopwatch.GetElapsedTime(Stopwatch.GetTimestamp(), _deadline).TotalMilliseconds));

    /// <summary>Receives what there is; true with a VM when a hand-over is complete and fits the image.</summary>
    /// <exception cref="GuestMemoryException">The hand-over is wrong, contradicts the image, or takes too long.</exception>
    public bool TryReceive(PageSource source, UffdPolicy policy, [NotNullWhen(true)] out UffdVm? vm)
    {
        vm = null;
        var handover = _receiver.Receive(out var ended);
        IsEnded = ended;
        if (handover is null)
        {
            if (_receiver.IsPartial && _deadline == 0) _deadline = Deadline();
            if (!ended && IsOverdue)
            {
                throw new GuestMemoryException(GuestMemoryError.HandoverTimeout,
                    $"The VMM connected but did not hand its memory over within {_limit.TotalSeconds:0.#} s.");
            }

            return false;
        }

        UffdVmState? state = null;
        try
        {
            UffdMappingList.Validate(handover.Mappings, source.Length);
            state = new UffdVmState(UffdVmState.PagesOf(handover.Mappings));
            vm = new UffdVm(handover.Userfaultfd, handover.Mappings, state, source, policy);
        }
        catch
        {
            handover.Userfaultfd.Dispose();
            state?.Dispose();
            throw;
        }

        _deadline = 0;
        return true;
    }

    /// <summary>Kills the VMM; says why not where it cannot.</summary>
    public string? Kill() => _process is null ? $"Process {Peer.pid} is not known well enough to be killed."
        : Pidfd.TryKill(_process) is var error and not (0 or Errno.ESRCH) ? $"Process {Peer.pid} could not be killed ({Errno.Name(error)})." : null;

    public void Dispose()
    {
        _process?.Dispose();
        foreach (var vm in Vms) vm.Dispose();
        _receiver.Dispose();
        Socket.Dispose();
    }

    private long Deadline() => Stopwatch.GetTimestamp() + (long)(_limit.TotalSeconds * Stopwatch.Frequency);
}
