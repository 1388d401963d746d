using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>An image that must not be read any more, because it has changed: what of a VM has not come is treated as any page that cannot be read (OnError).</summary>
/// <param name="name">Its path.</param>
/// <param name="length">The bytes that VMs may have of it.</param>
internal sealed class UnreadableSource(string name, ulong length) : PageSource
{
    public override string Name => name;

    public override ulong Length => length;

    public override int Locate(ulong offset, ulong length, PageScratch scratch, out PageRunData run)
    {
        run = default;
        return Errno.EIO;
    }

    public override void Dispose()
    {
    }
}
