namespace GuestMemory.Core.Userfault;

/// <summary>A source that is made of others, each of which has some of the bytes.</summary>
internal abstract class CompositeSource : PageSource
{
    /// <summary>Which source has the bytes at an offset.</summary>
    /// <param name="offset">The first byte; afterwards where it lies in that source.</param>
    /// <param name="length">How many bytes are wanted; afterwards how many of them that source has.</param>
    protected abstract PageSource Find(ref ulong offset, ref ulong length);

    public override int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run) =>
        Find(ref offset, ref length).Locate(offset, length, scratch, out run);

    public override void Prepare(ulong offset, ulong length, PageScratch scratch)
    {
        for (ulong done = 0, part; done < length; done += part)
        {
            var at = offset + done;
            part = length - done;
            Find(ref at, ref part).Prepare(at, part, scratch);
        }
    }

    public override bool IsReady(ulong offset, ulong length)
    {
        for (ulong done = 0, part; done < length; done += part)
        {
            var at = offset + done;
            part = length - done;
            if (!Find(ref at, ref part).IsReady(at, part)) return false;
        }

        return true;
    }
}
