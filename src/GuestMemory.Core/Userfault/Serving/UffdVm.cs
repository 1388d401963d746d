using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// One VM being served: its userfaultfd, its regions, and which of its pages were removed. Events are read and faults answered on
/// the thread of its <see cref="UffdVmService"/> alone, which owns every field where nothing else is said; one thread of the
/// <see cref="UffdFiller"/> at a time may fill ahead. Nothing is allocated while it serves. The rules are those of the
/// kernel: removals are applied before the faults of the same batch; a page once removed is zero from then on; while a removal
/// waits to be read no page can be filled, so EAGAIN reads on.
/// </summary>
internal sealed unsafe partial class UffdVm : IDisposable
{
    // So many batches of events are read in a turn; then the faults among them are answered.
    private const int MaxBatches = 16;

    private const int NoVerdict = -1;
    private const int FewErrors = 16;
    private static readonly long s_errorPause = Stopwatch.Frequency / 10;

    // Of every thread: they never change.
    private readonly SafeDescriptor _descriptor;
    private readonly PageSource _source;
    private readonly UffdPolicy _policy;
    private readonly IReadOnlyList<GuestRegionUffdMapping> _mappings;
    private readonly UffdVmState _state;
    private readonly UffdMsg* _message;
    private readonly UffdCounters* _counters;
    private readonly FillGate _gate;
    private readonly Func<PageScratch, bool> _help;
    private readonly int _uffd;
    private readonly ulong? _features;
    private int _last;
    private bool _knowsNoWait = true;
    private string? _untold;
    private int _told;
    private long _toldAt;

    // Written by the service while the filler is kept out (FillGate), read by any thread.
    private volatile UffdVmRegion[] _regions = [];
    private volatile UffdVmRegion[] _byPage = [];

    // Written by the service and the filler, read by any thread.
    private volatile bool _gone;
    private volatile int _onError;
    private volatile string? _error;
    private volatile int _verdict = NoVerdict;

    /// <summary>Takes the userfaultfd and the state over. Where the state was used before, <see cref="Recover"/> comes next.</summary>
    /// <param name="userfaultfd">The userfaultfd.</param>
    /// <param name="mappings">The VM's regions; their order decides which pages of the state are whose.</param>
    /// <param name="state">What must survive this process.</param>
    /// <param name="source">Where the pages come from.</param>
    /// <param name="policy">How they are brought in.</param>
    /// <param name="features">The features that the userfaultfd was opened with; null where this process is to read them.</param>
    public UffdVm(SafeDescriptor userfaultfd, IReadOnlyList<GuestRegionUffdMapping> mappings, UffdVmState state, PageSource source, UffdPolicy policy, ulong? features = null)
    {
        _descriptor = userfaultfd;
        _uffd = _descriptor.Number;
        _source = source;
        _help = FillWhileWaiting;
        _policy = policy;
        OnError = policy.OnError;
        _state = state;
        _gate = new FillGate(state.Reads);
        _message = state.Messages;
        _counters = state.Counters;
        _mappings = mappings;
        _features = features;
        SetRegions(UffdVmRegion.Of(mappings, state.Moves));
        if (policy.TrackDirty) Protect();
        else if (IsTrackedByVmm()) _protection = Userfaultfd.UFFDIO_COPY_MODE_WP;
        _replaying = policy.Replay is not null && !IsFilled;
        if (_counters->StartedAt == 0) _counters->StartedAt = Stopwatch.GetTimestamp();
    }

    public SafeDescriptor Descriptor => _descriptor;

    /// <summary>The list that was handed over.</summary>
    public IReadOnlyList<GuestRegionUffdMapping> Mappings => _mappings;

    public ref UffdCounters Counters => ref *_counters;

    public LatencyHistogram Latency => _state.Latency;

    public UffdVmState State => _state;

    /// <summary>Who waits for parts of the image that are not in memory; null where the thread that serves waits itself.</summary>
    public UffdFetches? Fetches { get; set; }

    /// <summary>What went wrong last, or null. For any thread.</summary>
    public string? Error => _error;

    /// <summary>What went wrong since this was asked last, or null. Of a VM that makes errors without end only the last one is told now and then.</summary>
    public string? TakeError()
    {
        if (_untold is not { } error) return null;
        var now = Stopwatch.GetTimestamp();
        if (++_told > FewErrors && !IsOver && now - _toldAt < s_errorPause) return null;
        _toldAt = now;
        _untold = null;
        return error;
    }

    /// <summary>What follows where a page cannot be read. For any thread.</summary>
    public UffdOnError OnError
    {
        get => (UffdOnError)_onError;
        set => _onError = (int)value;
    }

    /// <summary>Kills the VMM; says why not where it cannot. Set before the VM is served.</summary>
    public Func<string?>? Kill { get; set; }

    /// <summary>What was ordered for the case that the VM cannot be served any more, or the handler must stop. For any thread.</summary>
    public UffdOnError? Verdict
    {
        get => _verdict == NoVerdict ? null : (UffdOnError)_verdict;
        private set => _verdict = value is { } verdict ? (int)verdict : NoVerdict;
    }

    /// <summary>The VMM's memory is gone: nothing is left to serve. For any thread.</summary>
    public bool IsGone => _gone;

    /// <summary>Whether the VM is not to be served any more. For any thread.</summary>
    public bool IsOver => _gone || _verdict != NoVerdict;

    public void Dispose()
    {
        _descriptor.Dispose();
        foreach (var child in _children) child.Dispose();
        _state.Dispose();
    }

    /// <summary>
    /// Goes on where a process that is gone has stopped: what it read of removals takes effect, then whoever waits is woken, so
    /// that the kernel reports the faults again that were read and not answered.
    /// </summary>
    public void Recover()
    {
        for (var i = 0; i < UffdVmState.Batch; i++)
        {
            var message = _message[i];
            if (message.@event is Userfaultfd.UFFD_EVENT_REMOVE or Userfaultfd.UFFD_EVENT_UNMAP) MarkRemoved(message.remove_start, message.remove_end);
            else if (message.@event == Userfaultfd.UFFD_EVENT_REMAP) Move(message.remap_from, message.remap_to, message.remap_len);
            _message[i].@event = 0;
        }

        RecoverMarks();
        WakeAll();
    }

    /// <summary>Notes in the record what a process that is gone has brought in; only the order is lost with it. Where a filler may have brought it that is no touch.</summary>
    public void RecordWhatCame()
    {
        if (_policy.Recorder is not { } recorder || _policy.FillsAll) return;
        foreach (var region in _byPage)
        {
            var end = region.FirstPage + region.PageCount;
            for (var page = _state.Filled.Next(region.FirstPage, end, set: true); page < end; page = _state.Filled.Next(page + 1, end, set: true))
                recorder.Touch(region.Offset + (region.AddressOf(page) - region.Base), HostPage.Size);
        }
    }

    /// <summary>The VM cannot be served any more: notes why, and what follows. No thread of it waits for a page that is missing: it gets SIGBUS, or the VMM is killed.</summary>
    public void Abandon(string why)
    {
        FailLive("The VM was not served any more");
        var what = $"The VM is not served any more: {why}";
        var action = OnError;
        if (action != UffdOnError.Kill || !TryKill(ref what, "as OnError says"))
        {
            if (action == UffdOnError.Stop || TryLetGo() || !TryKill(ref what, "since this kernel cannot poison its missing pages (Linux 6.6 and later can)")) Fail(what);
        }

        Verdict = action;
    }

    /// <summary>Takes what is queued in the kernel: removals take effect at once, faults join the list.</summary>
    private void ReadEvents(PageScratch scratch)
    {
        int count, most;
        var batches = 0;
        do
        {
            _gate.EnterRead(_help, scratch);
            try
            {
                most = MostToRead();
                count = most == 0 ? -Errno.EAGAIN : Userfaultfd.TryRead(_uffd, _message, most, ref _knowsNoWait);
                if (UffdDebug.IsArmed) UffdDebug.AfterRead(count);
                var now = Stopwatch.GetTimestamp();
                for (var i = 0; i < count; i++)
                {
                    Apply(_message[i], now);
                    // It has taken effect: a successor need not repeat it.
                    _message[i].@event = 0;
                }
            }
            finally
            {
                _gate.ExitRead();
            }

            if (count >= 0 || count is -Errno.EAGAIN or -Errno.EINTR) continue;
            Fail($"Reading the userfaultfd failed: {Errno.Name(-count)}.");
            _gone = true;
        }
        while (count == most && ++batches < MaxBatches);
    }

    private void Apply(UffdMsg message, long now)
    {
        switch (message.@event)
        {
            case Userfaultfd.UFFD_EVENT_PAGEFAULT:
                if (_waitingCount == _waiting.Length) MakeRoom();
                _waiting[_waitingCount++] = new UffdFault { Address = message.pagefault_address, Flags = message.pagefault_flags, Since = now };
                Activity++;
                break;
            case Userfaultfd.UFFD_EVENT_REMOVE:
                MarkRemoved(message.remove_start, message.remove_end);
                _counters->Removes++;
                break;
            case Userfaultfd.UFFD_EVENT_UNMAP:
                // What is mapped there later is not the image's.
                MarkRemoved(message.remove_start, message.remove_end);
                break;
            case Userfaultfd.UFFD_EVENT_REMAP:
                Move(message.remap_from, message.remap_to, message.remap_len);
                break;
            case Userfaultfd.UFFD_EVENT_FORK:
                RefuseChild((int)message.fork_ufd);
                break;
            default:
                Fail($"The userfaultfd sent event 0x{message.@event:x} (flags 0x{message.pagefault_flags:x}), which this handler cannot answer: the VMM registered its memory for more than missing pages.");
                break;
        }
    }

    private void SetRegions(UffdVmRegion[] regions)
    {
        _byPage = regions;
        _regions = [.. regions.Where(static region => !region.IsLost).OrderBy(static region => region.Base)];
        _last = 0;
    }

    private void MarkRemoved(ulong start, ulong end)
    {
        NoteChange(start, end);
        foreach (var region in _regions)
        {
            var from = Math.Max(start, region.Base);
            var to = Math.Min(end, region.End);
            if (from >= to) continue;
            _state.Removed.Set(region.PageOf(from), (to - from) / HostPage.Size);
            if (_protection != 0) MarkRemoving(region.PageOf(from), (to - from) / HostPage.Size);
        }
    }

    private UffdVmRegion? Find(ulong address)
    {
        var regions = _regions;
        if (regions.Length == 0) return null;
        var last = regions[_last];
        if (address - last.Base < last.Size) return last;
        int low = 0, high = regions.Length - 1;
        while (low <= high)
        {
            var middle = (low + high) >> 1;
            var region = regions[middle];
            if (address < region.Base) high = middle - 1;
            else if (address >= region.End) low = middle + 1;
            else
            {
                _last = middle;
                return region;
            }
        }

        return null;
    }

    private void Fail(string error)
    {
        _error = error;
        _untold = error;
    }
}
