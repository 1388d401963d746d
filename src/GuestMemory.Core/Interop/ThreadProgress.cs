using System.Globalization;

namespace GuestMemory.Core.Interop;

/// <summary>
/// Whether another thread of this process has got past what it was doing, as far as <c>/proc/self/task</c> tells: it sleeps in a system
/// call, or it has run for so long that a short access which it had begun is over.
/// </summary>
internal sealed class ThreadProgress
{
    // An access that nobody counts takes less than a tenth of a millisecond of processor time, with every page of it cleared.
    private const long Turn = 1_000_000;

    // In turns, with a barrier between them: a virtual CPU that the hypervisor has taken away is charged for the time, but answers no
    // barrier, so that a single turn at most is not one.
    private const int Turns = 4;

    // More than one look: a collection stops threads anywhere, and they sleep then, but it also stops the thread that looks.
    private const int Looks = 3;

    private readonly string _folder;
    private long _ran;
    private long _counted;
    private int _turns;
    private int _looks = -1;

    private ThreadProgress(string folder) => _folder = folder;

    /// <summary>
    /// Waits until every other thread has ended the short access to memory that it may have been at. What each does from now on is its
    /// own affair: it sees what was written before the barrier that the caller has issued.
    /// </summary>
    /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
    public static void WaitForOthers(CancellationToken cancellation)
    {
        // self/task/17
        var own = Path.GetFileName(new FileInfo("/proc/thread-self").LinkTarget);
        var others = Directory.GetDirectories("/proc/self/task").Where(folder => Path.GetFileName(folder) != own).Select(folder => new ThreadProgress(folder)).ToList();
        while (true)
        {
            others.RemoveAll(static thread => thread.HasPassed());
            if (others.Count == 0) return;
            cancellation.ThrowIfCancellationRequested();
            Thread.Sleep(1);
            Interlocked.MemoryBarrierProcessWide();
        }
    }

    /// <summary>Looks at a thread, by its number; for tests.</summary>
    internal static ThreadProgress Of(int thread) => new(string.Create(CultureInfo.InvariantCulture, $"/proc/self/task/{thread}"));

    /// <summary>Looks once more; true from the look on at which the thread had got past.</summary>
    internal bool HasPassed()
    {
        if (_turns >= Turns || _looks >= Looks) return true;
        try
        {
            var status = File.ReadAllText($"{_folder}/stat");
            // The fields behind the name, which is anything in parentheses: the state first.
            var fields = status[(status.LastIndexOf(')') + 2)..].Split(' ');
            var ran = ProcessorTime(fields);
            if (_looks < 0)
            {
                (_ran, _counted) = (ran, ran);
            }
            else if (ran - _counted >= Turn)
            {
                _counted = ran;
                _turns++;
            }

            _looks = ran == _ran && IsAsleep(fields[0]) ? _looks + 1 : 0;
            _ran = ran;
            return fields[0] is "Z" or "X" || _turns >= Turns || _looks >= Looks;
        }
        catch (IOException) when (!Directory.Exists(_folder))
        {
            // It has ended.
            _turns = Turns;
            return true;
        }
    }

    /// <summary>
    /// Whether it sleeps where no access of its own is under way. A page that comes from a disk is waited for without interruption, as
    /// some system calls wait; only the kernel can tell the two apart.
    /// </summary>
    private bool IsAsleep(string state) => state == "S" || (state == "D" && File.Exists($"{_folder}/syscall") && File.ReadAllText($"{_folder}/syscall") is [>= '0' and <= '9', ..]);

    /// <summary>In nanoseconds; from ticks where the kernel keeps nothing finer.</summary>
    private long ProcessorTime(string[] fields)
    {
        var file = $"{_folder}/schedstat";
        if (File.Exists(file) && File.ReadAllText(file).Split(' ') is [var time, ..] && long.Parse(time, CultureInfo.InvariantCulture) is var ran and > 0) return ran;
        // utime and stime, of which there are 100 in a second on every machine.
        return (long.Parse(fields[11], CultureInfo.InvariantCulture) + long.Parse(fields[12], CultureInfo.InvariantCulture)) * 10_000_000;
    }
}
