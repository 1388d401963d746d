using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Serves one VM on a thread of its own: waits for the VM's events, reads them, and answers its faults. What keeps this thread busy or
/// asleep (a copy of a huge page, a disk, a VMM that made its userfaultfd blocking, an exception) concerns this VM and no other.
/// </summary>
internal sealed class UffdVmService : IDisposable
{
    // Reserved; of it the thread touches what serving needs, about 20 KiB.
    private const int StackSize = 256 << 10;

    // Read by every thread, written before the thread starts.
    private readonly SafeDescriptor _wake;
    private readonly UffdVmHelpers _helpers;
    private readonly Action<UffdVm, string>? _failed;
    private readonly Action<UffdVmService> _finished;
    private readonly Thread _thread;

    // Written by the handler's thread.
    private volatile bool _stopping;
    private UffdOnError? _order;

    // Under their lock.
    private readonly Queue<Task> _calls = [];
    private bool _isOver;
    private long _stoppedAt;
    private string? _whyStopped;

    // Written by the service's own thread.
    private volatile int _threadId;
    private UffdFill? _fill;

    /// <summary>Takes the VM over where it returns.</summary>
    /// <param name="vm">The VM.</param>
    /// <param name="connection">The VMM's connection.</param>
    /// <param name="image">What it is served from.</param>
    /// <param name="helpers">What the VMs of a handler share.</param>
    /// <param name="failed">Called on the service's thread with an error after which the VM is still served; may be null.</param>
    /// <param name="finished">Called once, on the service's thread, when it does nothing any more for the VM.</param>
    /// <param name="identity">Which VM it is, taken over too; null where another process knows that.</param>
    public UffdVmService(UffdVm vm, UffdConnection connection, UffdImageService image, UffdVmHelpers helpers, Action<UffdVm, string>? failed, Action<UffdVmService> finished, UffdVmIdentity? identity = null)
    {
        _wake = EventFd.Create();
        Vm = vm;
        Connection = connection;
        Image = image;
        Identity = identity;
        vm.Kill = connection.Kill;
        _helpers = helpers;
        _failed = failed;
        _finished = finished;
        _thread = new Thread(Run, StackSize) { IsBackground = true, Name = $"uffd-vm-{connection.Peer.pid}" };
    }

    public UffdVm Vm { get; }

    public UffdConnection Connection { get; }

    public UffdImageService Image { get; }

    public UffdVmIdentity? Identity { get; }

    /// <summary>Whether the VM is not served any more, or will not be in a moment. For any thread.</summary>
    public bool IsEnding => _stopping || Vm.IsOver;

    /// <summary>Starts the thread. Where the host has none left the VM has ended at once, as its policy for errors says.</summary>
    public void Start()
    {
        try
        {
            _thread.Start();
        }
        catch (Exception exception) when (exception is OutOfMemoryException or ThreadStartException)
        {
            Vm.Abandon("The host has no thread for it (TasksMax=, 'ulimit -u', kernel.threads-max).");
            EndCalls();
            _finished(this);
        }
    }

    /// <summary>Has something done on the service's thread, between two turns, and waits for it. For any other thread.</summary>
    /// <exception cref="GuestMemoryException">VmNotFound: the VM is not served any more.</exception>
    public void Invoke(Action<UffdVm, PageScratch> action)
    {
        var call = new Task(() =>
        {
            if (_isOver) throw Gone();
            var scratch = _helpers.Scratches.Rent();
            try
            {
                action(Vm, scratch);
            }
            finally
            {
                _helpers.Scratches.Return(scratch);
            }
        });
        lock (_calls)
        {
            if (_isOver) throw Gone();
            _calls.Enqueue(call);
            EventFd.Signal(_wake);
        }

        call.GetAwaiter().GetResult();

        GuestMemoryException Gone() => new(GuestMemoryError.VmNotFound, $"The VM of process {Connection.Peer.pid} is not served any more.");
    }

    /// <summary>Has the service end; it does so on its own thread, in its own time. For the handler's thread.</summary>
    /// <param name="why">Why nothing will serve the VM any more; null where something may.</param>
    public void Stop(string? why = null)
    {
        if (_stopping) return;
        _whyStopped = why;
        _stoppedAt = Stopwatch.GetTimestamp();
        _stopping = true;
        EventFd.Signal(_wake);
    }

    /// <summary>The same as an operator orders it: the VMM is killed, or the VM's missing pages are poisoned (<see cref="UffdVm.StopServing"/>). For the handler's thread.</summary>
    public void StopAs(UffdOnError action)
    {
        // Before Stop, which makes it visible.
        if (!_stopping) _order = action;
        Stop();
    }

    /// <summary>
    /// Interrupts a service that was told to end and has not: before Linux 6.10 it may be in a read of a userfaultfd that the VMM made
    /// blocking. For the handler's thread, again and again.
    /// </summary>
    public void InterruptIfLate(TimeSpan patience)
    {
        if (!_stopping || _threadId == 0 || Stopwatch.GetElapsedTime(_stoppedAt) < patience) return;
        // The interrupted read starts anew, and then finds this.
        Userfaultfd.SetNonBlocking(Vm.Descriptor.Number);
        _ = Signals.Prepare();
        Signals.Wake(_threadId);
    }

    /// <summary>Waits until the thread has ended; false when the time is over first.</summary>
    public bool Join(TimeSpan patience) => (_thread.ThreadState & System.Threading.ThreadState.Unstarted) != 0 || _thread.Join(patience);

    /// <summary>Closes everything but the connection. The thread has ended, or is in its last instructions.</summary>
    public void Dispose()
    {
        _ = Join(Timeout.InfiniteTimeSpan);
        Vm.Dispose();
        Identity?.Dispose();
        _wake.Dispose();
    }

    private void Run()
    {
        string? why = null;
        try
        {
            _threadId = Signals.CurrentThread();
            Vm.Fetches = new UffdFetches(_helpers.Fetchers, Image.Source, _wake);
            Vm.RecordWhatCame();
            _fill = Image.Filler?.Add(Vm);
            Image.NoteVm();
            while (!IsEnding) Turn();
        }
#pragma warning disable CA1031 // Whatever went wrong with this VM ends its service and must not end the process.
        catch (Exception exception)
        {
            why = exception.Message;
        }
#pragma warning restore CA1031
        // Each may wait for a disk, and only this thread does.
        if (_fill is not null) Image.Filler!.Remove(_fill);
        Vm.Fetches?.End();
        if (!Vm.IsOver) why ??= _whyStopped;
        if (why is not null) Vm.Abandon(why);
        else if (_order is { } action && !Vm.IsOver) Vm.StopServing(action);
        Vm.EndLive();
        EndCalls();
        TellError();
        _finished(this);
    }

    /// <summary>Waits for an event, a fetch that is done, or the time of a deferred fault, and serves the VM once.</summary>
    private void Turn()
    {
        // The kernel passes over a negative one.
        Span<PollFd> entries = [new PollFd { fd = Vm.IsHeld ? -1 : Vm.Descriptor.Number, events = Poll.POLLIN }, new PollFd { fd = _wake.Number, events = Poll.POLLIN }];
        _ = Poll.Wait(entries, Vm.Timeout);
        if (entries[1].revents != 0)
        {
            _ = EventFd.Clear(_wake);
            FollowCalls();
        }

        // The VMM made it blocking, and poll says so all the time.
        if ((entries[0].revents & Poll.POLLERR) != 0) Userfaultfd.SetNonBlocking(Vm.Descriptor.Number);
        var scratch = _helpers.Scratches.Rent();
        try
        {
            Vm.Serve(scratch);
        }
        finally
        {
            _helpers.Scratches.Return(scratch);
        }

        Vm.TellCaughtUp();
        TellError();
    }

    private void FollowCalls()
    {
        while (TryNextCall(out var call)) call.RunSynchronously();

        bool TryNextCall([NotNullWhen(true)] out Task? call)
        {
            lock (_calls) return _calls.TryDequeue(out call);
        }
    }

    private void EndCalls()
    {
        lock (_calls) _isOver = true;
        FollowCalls();
    }

    private void TellError()
    {
        if (Vm.TakeError() is { } error) _failed?.Invoke(Vm, error);
    }
}
