using System.Diagnostics;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>
/// A program that was started to take over from this supervisor, as the supervisor sees it. It begins a process group, so that it and its
/// workers can be ended, and their end be waited for, as one.
/// </summary>
internal sealed class Successor : IDisposable
{
    /// <summary>The successor's end of the channel.</summary>
    public const int ChannelNumber = 3;

    private const int Slice = 20;

    // What was sent and not received yet counts against the limit of open files.
    private const int FullPause = 1;

    private readonly SafeDescriptor _end;
    private readonly Channel _channel;
    private readonly Action _whileWaiting;
    private readonly long _deadline;
    private readonly TimeSpan _limit;
    private readonly List<SafeDescriptor> _unwanted = [];

    private Successor(int process, SafeDescriptor end, Channel channel, TimeSpan limit, Action whileWaiting)
    {
        ProcessId = process;
        _end = end;
        _channel = channel;
        _limit = limit;
        _deadline = Stopwatch.GetTimestamp() + (long)(limit.TotalSeconds * Stopwatch.Frequency);
        _whileWaiting = whileWaiting;
    }

    public int ProcessId { get; }

    /// <summary>How long it may take until it serves.</summary>
    public TimeSpan Limit => _limit;

    /// <summary>Whether its worker can take VMs.</summary>
    public bool IsReady { get; private set; }

    /// <summary>Starts the program.</summary>
    /// <param name="program">Its path, and the arguments that come first.</param>
    /// <param name="arguments">The handler's arguments.</param>
    /// <param name="variables">Its environment.</param>
    /// <param name="limit">How long it may take until it serves.</param>
    /// <param name="whileWaiting">Called again and again while it is waited for.</param>
    /// <exception cref="GuestMemoryException">UpgradeFailed.</exception>
    public static Successor Start(IReadOnlyList<string> program, IEnumerable<string> arguments, IReadOnlyList<string> variables, TimeSpan limit, Action whileWaiting)
    {
        SafeDescriptor? near = null;
        try
        {
            (near, var far) = UnixSocket.CreatePair(nonBlocking: true);
            using var mine = far;
            using var nothing = File.OpenHandle("/dev/null");
            ProcessGroup.AdoptOrphans(true);
            var process = Spawn.Start(program[0], [.. program, .. arguments], variables, [(int)nothing.DangerousGetHandle(), 2, 2, far.Number], inOwnSession: true);
            var end = Pidfd.TryOpen(process, out var error);
            if (end is not null) return new Successor(process, end, new Channel(near), limit, whileWaiting);
            do ProcessGroup.Kill(process);
            while (!ProcessGroup.HasEnded(process));
            throw new SyscallException("pidfd_open", error, "Watching the new program");
        }
        catch (Exception exception) when (exception is GuestMemoryException or IOException)
        {
            near?.Dispose();
            ProcessGroup.AdoptOrphans(false);
            throw Failed($"it could not be started: {exception.Message}", exception);
        }
    }

    /// <summary>Looks whether it is ready.</summary>
    /// <exception cref="GuestMemoryException">UpgradeFailed: it has ended, says that it cannot, or takes too long.</exception>
    public void Look()
    {
        IsReady |= TryTake(ChannelMessageType.Ready);
        if (Stopwatch.GetTimestamp() > _deadline) throw TooLate(_limit);
    }

    /// <summary>Gives it a descriptor.</summary>
    /// <exception cref="GuestMemoryException">UpgradeFailed.</exception>
    public void Give(string name, SafeDescriptor descriptor) => Send(new ChannelMessage { Type = ChannelMessageType.Kept, Message = name }, descriptor);

    public void Send(ChannelMessageType type) => Send(new ChannelMessage { Type = type });

    /// <summary>Waits for an answer.</summary>
    /// <exception cref="GuestMemoryException">UpgradeFailed: it has ended, says that it cannot, or takes longer than the limit.</exception>
    public void Await(ChannelMessageType answer, TimeSpan limit)
    {
        var started = Stopwatch.GetTimestamp();
        while (!TryTake(answer))
        {
            if (Stopwatch.GetElapsedTime(started) > limit)
            {
                // It may have come while this process did not run.
                if (TryTake(answer)) return;
                throw TooLate(limit);
            }

            Span<PollFd> entry = [new PollFd { fd = _channel.Socket.Number, events = Poll.POLLIN }];
            _ = Poll.Wait(entry, Slice);
            _whileWaiting();
        }
    }

    /// <summary>Has the handler stopped that it has by now.</summary>
    public void Stop() => _ = Pidfd.TrySignal(_end, Pidfd.SIGTERM);

    /// <summary>Ends it and all that it has started, and waits until none of them can do anything any more.</summary>
    public void End()
    {
        do
        {
            ProcessGroup.Kill(ProcessId);
            Thread.Sleep(FullPause);
            _whileWaiting();
        }
        while (!ProcessGroup.HasEnded(ProcessId));
        ProcessGroup.AdoptOrphans(false);
        Dispose();
    }

    /// <summary>Lets go of it; it goes on.</summary>
    public void Dispose()
    {
        _channel.Dispose();
        _end.Dispose();
    }

    public static GuestMemoryException Failed(string why, Exception? cause = null) => new(GuestMemoryError.UpgradeFailed, $"The new program cannot take over: {why}", cause);

    private static GuestMemoryException TooLate(TimeSpan limit) => Failed($"it did not answer within {limit.TotalSeconds:0.#} s.");

    private void Send(ChannelMessage message, params ReadOnlySpan<SafeDescriptor> descriptors)
    {
        var started = Stopwatch.GetTimestamp();
        while (!_channel.TrySend(message, descriptors))
        {
            // What it said of itself comes first.
            _ = TryTake(null);
            if (Stopwatch.GetElapsedTime(started) > _limit) throw TooLate(_limit);
            Thread.Sleep(FullPause);
            _whileWaiting();
        }
    }

    /// <summary>Takes the next message if there is one, which must be the awaited one.</summary>
    private bool TryTake(ChannelMessageType? awaited)
    {
        var hasEnded = Pidfd.HasEnded(_end);
        var message = Receive();
        if (message is null && (hasEnded || _channel.IsEnded)) throw Failed("it has ended, or listens no more; the log may say why.");
        if (message is null) return false;
        if (message.Type == ChannelMessageType.Failed) throw Failed($"{message.ErrorId}: {message.Message}");
        if (message.Type != awaited) throw Failed($"it said {message.Type} where {awaited?.ToString() ?? "nothing"} was expected.");
        return true;
    }

    private ChannelMessage? Receive()
    {
        try
        {
            return _channel.TryReceive(_unwanted);
        }
        catch (GuestMemoryException exception)
        {
            throw Failed(exception.Message, exception);
        }
        finally
        {
            foreach (var descriptor in _unwanted) descriptor.Dispose();
            _unwanted.Clear();
        }
    }
}
