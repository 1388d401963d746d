using System.Globalization;

namespace GuestMemory.Core.Interop;

/// <summary>
/// Whether another thread of this process has got past what it was doing, as far as the kernel tells: it sleeps in a system call, or it has
/// run for so long (<see cref="ThreadClock"/>) that a short access which it had begun is over.
/// </summary>
internal sealed class ThreadProgress
{
    // In nanoseconds. Four of them are ten times what an access takes that nobody counts, with every page of it cleared. In turns, with
    // a barrier after each: a virtual CPU that its host has descheduled is charged for the time, but does not answer.
    private const long Turn = 250_000;
    private const int Turns = 4;

    // Looks at a thread that has not run in between. More than one: a collection stops threads wherever they are, and they sleep then; but
    // it also stops the thread that looks, and when that goes on, so do they.
    private const int Looks = 3;
    private const int BetweenLooks = 100_000;

    private readonly int _thread;
    private long _ran = -1;
    private long _counted;
    private int _turns;
    private int _looks;

    /// <param name="thread">The number of the thread.</param>
    internal ThreadProgress(int thread) => _thread = thread;

    /// <summary>
    /// Waits until every other thread has ended the short access to memory that it may have been at. What each does from now on is its
    /// own affair: it sees what was written before the barrier that the caller has issued.
    /// </summary>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    public static void WaitForOthers(CancellationToken cancellation)
    {
        // self/task/17
        var own = Path.GetFileName(new FileInfo("/proc/thread-self").LinkTarget);
        var others = Directory.GetDirectories("/proc/self/task").Select(Path.GetFileName).Where(name => name != own)
            .Select(static name => new ThreadProgress(int.Parse(name!, CultureInfo.InvariantCulture))).ToList();
        while (true)
        {
            others.RemoveAll(static thread => thread.HasPassed());
            if (others.Count == 0) return;
            cancellation.ThrowIfCancellationRequested();
            ThreadClock.Pause(BetweenLooks);
            Interlocked.MemoryBarrierProcessWide();
        }
    }

    /// <summary>Looks once more; true from the look on at which the thread had got past.</summary>
    internal bool HasPassed()
    {
        if (_turns >= Turns) return true;
        if (!ThreadClock.TryRead(_thread, out var ran)) return true;
        if (_ran < 0) (_ran, _counted) = (ran, ran);
        if (ran - _counted >= Turn)
        {
            _counted = ran;
            _turns++;
        }

        _looks = ran == _ran ? _looks + 1 : 0;
        _ran = ran;
        return _turns >= Turns || (_looks > Looks && IsAsleep());
    }

    /// <summary>
    /// Whether it sleeps where no access to direct memory is under way: in a system call, or, where it can be interrupted, for a page of a
    /// userfaultfd, which is none of direct memory. A page that comes from a disk is waited for without interruption.
    /// </summary>
    private bool IsAsleep()
    {
        var folder = string.Create(CultureInfo.InvariantCulture, $"/proc/self/task/{_thread}");
        try
        {
            // The number of a system call and its arguments; "-1" outside of any; "running".
            var call = File.Exists($"{folder}/syscall") ? File.ReadAllText($"{folder}/syscall") : "-1";
            if (!call.StartsWith('-')) return call is [>= '0' and <= '9', ..];
            var status = File.ReadAllText($"{folder}/stat");
            // The state stands behind the name, which is anything in parentheses.
            return status[status.LastIndexOf(')') + 2] is 'S' or 'Z' or 'X';
        }
        catch (IOException) when (!Directory.Exists(folder))
        {
            return true;
        }
    }
}
