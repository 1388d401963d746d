using System.Globalization;
using System.Text;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.Fuzz;

/// <summary>Memory that is registered with a userfaultfd, and what its VMM can send. "10000000000000N" stands for the Nth multiple of 256 MiB in it.</summary>
/// <param name="userfaultfd">The userfaultfd.</param>
/// <param name="start">The address of the memory.</param>
/// <param name="mapping">The memory, where it is this process's.</param>
internal class Vmm(SafeDescriptor userfaultfd, ulong start, MmapRegion? mapping = null)
{
    /// <summary>The bytes of the memory.</summary>
    public const ulong Length = 2UL << 30;

    /// <summary>The memory begins at a multiple of this.</summary>
    public const ulong Gigantic = 1UL << 30;

    private const ulong Slot = 256UL << 20;

    private static readonly byte[] s_placeholder = Encoding.UTF8.GetBytes("10000000000000");
    private readonly SafeDescriptor _eventfd = EventFd.Create();
    private readonly SafeDescriptor _memfd = Memfd.CreateSealed("fuzz", (long)Length, 0);

    public MmapRegion? Mapping => mapping;

    protected SafeDescriptor Userfaultfd => userfaultfd;

    /// <summary>One with memory of this process.</summary>
    public static Vmm OfThisProcess()
    {
        var mapping = new MmapRegionBuilder(Length + Gigantic).Build();
        using var lease = mapping.Lease();
        var start = ((ulong)lease.Address + Gigantic - 1) & ~(Gigantic - 1);
        var userfaultfd = Core.Interop.Userfaultfd.Create(Core.Interop.Userfaultfd.UFFD_FEATURE_EVENT_REMOVE);
        Check.Same(0, Core.Interop.Userfaultfd.TryRegister(userfaultfd.Number, (nint)start, (nuint)Length, Core.Interop.Userfaultfd.UFFDIO_REGISTER_MODE_MISSING), "registering the memory");
        return new Vmm(userfaultfd, start, mapping);
    }

    public SafeDescriptor[] Descriptors(int which) => which switch
    {
        0 => [],
        1 => [_eventfd],
        2 => [userfaultfd, userfaultfd],
        3 => [userfaultfd, _memfd, _memfd],
        4 => [userfaultfd, _memfd],
        5 => [userfaultfd, _eventfd],
        _ => [userfaultfd],
    };

    /// <summary>Puts addresses in place of what stands for them, of the same length.</summary>
    public byte[] Place(byte[] stream)
    {
        for (var at = 0; (at = IndexOf(stream, at)) >= 0; at += s_placeholder.Length + 1)
        {
            var slot = (ulong)(stream[at + s_placeholder.Length] - '0') % (Length / Slot);
            var address = Encoding.UTF8.GetBytes((start + (slot * Slot)).ToString(CultureInfo.InvariantCulture));
            if (address.Length == s_placeholder.Length + 1) address.CopyTo(stream, at);
        }

        return stream;
    }

    /// <summary>Whether a VM has a page of the memory.</summary>
    public bool Owns(IReadOnlyList<GuestRegionUffdMapping> mappings) =>
        mappings.Any(mapping => mapping.BaseHostVirtAddr < start + Length && mapping.BaseHostVirtAddr + mapping.Size > start);

    private static int IndexOf(byte[] stream, int from)
    {
        var at = stream.AsSpan(from).IndexOf(s_placeholder);
        at = at < 0 ? at : at + from;
        return at >= 0 && at + s_placeholder.Length < stream.Length && char.IsAsciiDigit((char)stream[at + s_placeholder.Length]) ? at : -1;
    }
}
