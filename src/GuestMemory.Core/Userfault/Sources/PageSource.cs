namespace GuestMemory.Core.Userfault;

/// <summary>
/// Where a handler's pages come from. Any thread may ask, each with a scratch of its own. Asking costs one virtual call for each
/// ioctl, which is nothing beside it.
/// </summary>
internal abstract unsafe class PageSource : IDisposable
{
    /// <summary>What it is, for people: a path.</summary>
    public abstract string Name { get; }

    /// <summary>The bytes there are, holes included.</summary>
    public abstract ulong Length { get; }

    /// <summary>How the bytes lie in the files, as a text that is another one where another page could come of it.</summary>
    public virtual string Layout => "";

    /// <summary>
    /// Where the bytes from an offset on are, as many as lie together, at most <paramref name="length"/>. Offsets and lengths are
    /// multiples of the host's page size and lie inside. The kernel copies from there, so that the address may be one that cannot
    /// be read: that is an error (EFAULT) of the copy.
    /// </summary>
    /// <param name="offset">The first byte.</param>
    /// <param name="length">How many at most.</param>
    /// <param name="scratch">The calling thread's; what is found may lie in it until the next call.</param>
    /// <param name="run">Where they are, and how many.</param>
    /// <returns>0 or an error number.</returns>
    public abstract int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run);

    /// <summary>
    /// Brings bytes into memory that will soon be asked for, where that takes time: waits for the disk, or unpacks. Called before, and never
    /// instead of, <see cref="Locate"/>. It reports no error: <see cref="Locate"/>, or the copy, finds it again.
    /// </summary>
    public virtual void Prepare(ulong offset, ulong length, PageScratch scratch)
    {
    }

    /// <summary>Whether bytes can be copied at once, as far as is known: nothing is to be unpacked, and nothing to be read from a disk. It never waits for one.</summary>
    public virtual bool IsReady(ulong offset, ulong length) => true;

    /// <summary>Something took long for which <see cref="IsReady"/> has said that it would not: what it knows without looking may be old.</summary>
    public virtual void DoubtReady()
    {
    }

    /// <summary>Brings all of it into memory beside the serving, so that a fault rarely waits for the disk. On a thread that does nothing else.</summary>
    public virtual void ReadAhead(CancellationToken cancellation)
    {
    }

    public abstract void Dispose();
}
