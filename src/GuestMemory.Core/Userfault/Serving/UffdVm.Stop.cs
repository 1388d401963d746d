using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <content>The end of the serving of a VM that lives.</content>
internal sealed unsafe partial class UffdVm
{
    private const int MaxPoisonTries = 1000;

    /// <summary>
    /// Ends the serving because an operator wants it: kills the VMM, or lets go of the VM, whose missing pages are poisoned before. Unlike
    /// <see cref="Abandon"/> it is no error, unless it cannot be done as ordered. On the service's thread, when no other thread works for the VM.
    /// </summary>
    /// <param name="action">Kill or Poison.</param>
    public void StopServing(UffdOnError action)
    {
        FailLive("The VM was stopped");
        var failure = action == UffdOnError.Kill ? KillVmm() : null;
        if (action == UffdOnError.Kill && failure is not null) failure = $"{failure} {(TryLetGo() ? "Its missing pages were poisoned instead." : "Its missing pages could not be poisoned either.")}";
        // A kernel before 6.6 cannot poison: a thread of the VM would wait for ever.
        else if (action == UffdOnError.Poison && !TryLetGo()) failure = KillVmm();
        if (failure is not null) Fail(failure);
        Verdict = action;
    }

    /// <summary>Kills the VMM; why not where it cannot.</summary>
    private string? KillVmm() => Kill is null ? "The VMM is not known." : Kill();

    /// <summary>
    /// Poisons what has not come, and gives the memory back to the kernel, which provides what was given back as zeros; false where this kernel
    /// cannot poison.
    /// </summary>
    private bool TryLetGo()
    {
        var error = Errno.EAGAIN;
        for (var tries = 0; error == Errno.EAGAIN && tries < MaxPoisonTries; tries++)
        {
            if (tries > 0) Thread.Yield();
            // While a removal waits to be read no page can be poisoned.
            DrainEvents();
            error = TryPoisonMissing(_descriptor);
        }

        // Without its process there is nothing to let go of. A page that is not poisoned must not become zeros.
        if (error != 0) return error == Errno.ESRCH;
        foreach (var region in _regions) _ = Userfaultfd.TryUnregister(_uffd, region.Base, region.Size);
        // A thread of the VM that is in a removal waits for its event to be read.
        DrainEvents();
        return true;
    }

    private void DrainEvents()
    {
        int count;
        do
        {
            _state.Reads.Begin();
            count = Userfaultfd.TryRead(_uffd, _message, UffdVmState.Batch, ref _knowsNoWait);
            for (var i = 0; i < count; i++)
            {
                Apply(_message[i], Stopwatch.GetTimestamp());
                _message[i].@event = 0;
            }

            _state.Reads.End();
        }
        while (count > 0);
    }
}
