using System.Text.Json.Serialization;

namespace GuestMemory.Core.VmControl;

/// <summary>The holder of a range of addresses (crosvm's <c>resources::Alloc</c>). Equal by value.</summary>
public abstract record Alloc
{
    private Alloc()
    {
    }

    /// <summary>
    /// Reads the text that ToString gives: PciBar:BUS:DEVICE.FUNCTION/BAR with hexadecimal numbers, as lspci shows them
    /// (PciBar:00:03.0/2), PciBridgeWindow:00:03.0, PciBridgePrefetchWindow:00:03.0, GpuRenderNode, Pstore, Anon:1, PmemDevice:0, FileBacked:0.
    /// </summary>
    /// <exception cref="FormatException">It is no such text.</exception>
    public static Alloc Parse(string text) => AllocText.Parse(text);

    /// <summary>The text that <see cref="Parse"/> reads.</summary>
    public sealed override string ToString() => AllocText.Write(this);

    /// <summary>A holder without a kind; see <see cref="SystemAllocator.NextAnonAlloc"/>.</summary>
    /// <param name="Id">A number of its own.</param>
    public sealed record Anon(ulong Id) : Alloc;

    /// <summary>A base address register of a PCI device.</summary>
    /// <param name="Bus">The bus, from 0 to 255.</param>
    /// <param name="Device">The device on the bus, from 0 to 31.</param>
    /// <param name="Function">The function of the device, from 0 to 7.</param>
    /// <param name="Bar">The register, from 0 to 5.</param>
    public sealed record PciBar(byte Bus, [property: JsonPropertyName("dev")] byte Device, [property: JsonPropertyName("func")] byte Function, byte Bar) : Alloc;

    /// <summary>The GPU's render node.</summary>
    public sealed record GpuRenderNode : Alloc;

    /// <summary>A persistent memory device.</summary>
    /// <param name="Index">Which one.</param>
    public sealed record PmemDevice(ulong Index) : Alloc;

    /// <summary>The persistent store of crash logs.</summary>
    public sealed record Pstore : Alloc;

    /// <summary>The window of a PCI bridge.</summary>
    /// <param name="Bus">The bus, from 0 to 255.</param>
    /// <param name="Device">The device on the bus, from 0 to 31.</param>
    /// <param name="Function">The function of the device, from 0 to 7.</param>
    public sealed record PciBridgeWindow(byte Bus, [property: JsonPropertyName("dev")] byte Device, [property: JsonPropertyName("func")] byte Function) : Alloc;

    /// <summary>The prefetchable window of a PCI bridge.</summary>
    /// <param name="Bus">The bus, from 0 to 255.</param>
    /// <param name="Device">The device on the bus, from 0 to 31.</param>
    /// <param name="Function">The function of the device, from 0 to 7.</param>
    public sealed record PciBridgePrefetchWindow(byte Bus, [property: JsonPropertyName("dev")] byte Device, [property: JsonPropertyName("func")] byte Function) : Alloc;

    /// <summary>A file that is mapped into the guest.</summary>
    /// <param name="Index">Which one.</param>
    public sealed record FileBacked(ulong Index) : Alloc;
}
