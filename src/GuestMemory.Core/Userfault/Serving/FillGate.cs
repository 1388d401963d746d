using System.Diagnostics;
using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>
/// Keeps a VM's events from being read while pages are filled ahead. Reading a removal lets the VM go on, so that a page which was
/// looked at before and is filled after would bring back what was removed: nothing could take that page away again. The reader never
/// waits for more than the one piece that is under way, and the filler never goes in front of a reader.
/// </summary>
internal sealed class FillGate(EventReads reads)
{
    private const int Free = 0;
    private const int Filling = 1;
    private const int Awaited = 2;

    // About a microsecond, as long as reading takes.
    private const int ReadSpins = 1000;
    private const int Pause = 4;

    // A piece takes less; one that takes longer waits for a disk, or for its processor.
    private static readonly long s_patience = Stopwatch.Frequency / 5000;

    private int _filler;
    private int _fillerCpu;
    private int _sleeps;

    /// <summary>How often the reader slept for the filler, which has the same processor then or takes very long.</summary>
    public int Sleeps => Volatile.Read(ref _sleeps);

    /// <summary>For the thread that reads events.</summary>
    /// <param name="help">What it does while it waits, in small pieces; false where there is nothing to do.</param>
    /// <param name="scratch">The calling thread's.</param>
    public void EnterRead(Func<PageScratch, bool> help, PageScratch scratch)
    {
        reads.Begin();
        if (Volatile.Read(ref _filler) != Free) WaitForFiller(help, scratch);
    }

    public void ExitRead() => reads.End();

    /// <summary>For the thread that fills; false where the reader is at work or waits.</summary>
    public bool TryEnterFill()
    {
        for (var i = 0; i < ReadSpins; i++)
        {
            if (reads.IsUnderWay) continue;
            _fillerCpu = Scheduling.CurrentProcessor();
            Interlocked.Exchange(ref _filler, Filling);
            if (!reads.IsUnderWay) return true;
            ExitFill();
        }

        return false;
    }

    public void ExitFill()
    {
        if (Interlocked.Exchange(ref _filler, Free) != Awaited) return;
        Futex.Wake(ref _filler);
        // It has this processor, or would like to.
        Thread.Yield();
    }

    private void WaitForFiller(Func<PageScratch, bool> help, PageScratch scratch)
    {
        var sameCpu = Volatile.Read(ref _fillerCpu) == Scheduling.CurrentProcessor();
        if (!sameCpu && SpinForFiller(help, scratch)) return;
        Volatile.Write(ref _sleeps, _sleeps + 1);
        while (Volatile.Read(ref _filler) != Free)
        {
            if (Interlocked.CompareExchange(ref _filler, Awaited, Filling) != Free) Futex.Wait(ref _filler, Awaited);
        }

        // Where both stay on one processor, each waits for the other again and again.
        if (sameCpu) Scheduling.LeaveProcessor();
    }

    private bool SpinForFiller(Func<PageScratch, bool> help, PageScratch scratch)
    {
        var idleSince = 0L;
        while (Volatile.Read(ref _filler) != Free)
        {
            if (help(scratch)) continue;
            var now = Stopwatch.GetTimestamp();
            if (idleSince == 0) idleSince = now;
            if (now - idleSince > s_patience) return false;
            Thread.SpinWait(Pause);
        }

        return true;
    }
}
