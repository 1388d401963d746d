using GuestMemory.Core.Interop;

namespace GuestMemory.Core;

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
    private const int Spins = 40;

    private static readonly bool s_alone = Environment.ProcessorCount == 1;

    private int _filler;

    /// <summary>For the thread that reads events.</summary>
    public void EnterRead()
    {
        reads.Begin();
        if (Volatile.Read(ref _filler) != Free) WaitForFiller();
    }

    public void ExitRead() => reads.End();

    /// <summary>For the thread that fills; false where the reader is at work or waits.</summary>
    public bool TryEnterFill()
    {
        if (reads.IsUnderWay) return false;
        Interlocked.Exchange(ref _filler, Filling);
        if (!reads.IsUnderWay) return true;
        ExitFill();
        return false;
    }

    public void ExitFill()
    {
        if (Interlocked.Exchange(ref _filler, Free) == Awaited) Futex.Wake(ref _filler);
    }

    private void WaitForFiller()
    {
        for (var i = 0; !s_alone && i < Spins; i++)
        {
            if (Volatile.Read(ref _filler) == Free) return;
            Thread.SpinWait(4);
        }

        // The filler has the lower priority: on the same processor it goes on only when this thread sleeps.
        while (Volatile.Read(ref _filler) != Free)
        {
            if (Interlocked.CompareExchange(ref _filler, Awaited, Filling) != Free) Futex.Wait(ref _filler, Awaited);
        }
    }
}
