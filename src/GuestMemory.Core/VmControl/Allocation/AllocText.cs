using System.Globalization;
using System.Text.RegularExpressions;

namespace GuestMemory.Core.VmControl;

/// <summary>Holders of addresses as admins write them.</summary>
internal static partial class AllocText
{
    public static string Write(Alloc alloc) => alloc switch
    {
        Alloc.PciBar bar => $"PciBar:{new PciAddress(bar.Bus, bar.Device, bar.Function)}/{bar.Bar}",
        Alloc.PciBridgeWindow window => $"PciBridgeWindow:{new PciAddress(window.Bus, window.Device, window.Function)}",
        Alloc.PciBridgePrefetchWindow window => $"PciBridgePrefetchWindow:{new PciAddress(window.Bus, window.Device, window.Function)}",
        Alloc.Anon anon => $"Anon:{anon.Id}",
        Alloc.PmemDevice device => $"PmemDevice:{device.Index}",
        Alloc.FileBacked file => $"FileBacked:{file.Index}",
        _ => alloc.GetType().Name,
    };

    public static Alloc Parse(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        var (name, rest) = text.Split(':', 2) is [var first, var second] ? (first, second) : (text, "");
        return name.ToUpperInvariant() switch
        {
            "PCIBAR" when Place(rest, withBar: true) is var (at, bar) => new Alloc.PciBar(at.Bus, at.Device, at.Function, bar),
            "PCIBRIDGEWINDOW" when Place(rest, withBar: false) is var (at, _) => new Alloc.PciBridgeWindow(at.Bus, at.Device, at.Function),
            "PCIBRIDGEPREFETCHWINDOW" when Place(rest, withBar: false) is var (at, _) => new Alloc.PciBridgePrefetchWindow(at.Bus, at.Device, at.Function),
            "ANON" when Number(rest) is { } id => new Alloc.Anon(id),
            "PMEMDEVICE" when Number(rest) is { } index => new Alloc.PmemDevice(index),
            "FILEBACKED" when Number(rest) is { } index => new Alloc.FileBacked(index),
            "GPURENDERNODE" when rest.Length == 0 => new Alloc.GpuRenderNode(),
            "PSTORE" when rest.Length == 0 => new Alloc.Pstore(),
            _ => throw new FormatException($"'{text}' is not a holder of addresses. Write PciBar:BUS:DEVICE.FUNCTION/BAR (PciBar:00:03.0/2), PciBridgeWindow:00:03.0, PciBridgePrefetchWindow:00:03.0, Anon:1, PmemDevice:0, FileBacked:0, GpuRenderNode or Pstore."),
        };
    }

    private static ulong? Number(string text) => ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out var number) ? number : null;

    private static (PciAddress At, byte Bar)? Place(string text, bool withBar)
    {
        var match = PlaceText().Match(text);
        if (!match.Success || match.Groups["bar"].Success != withBar) return null;
        var device = Hex("device");
        return device > 31 ? null : (new PciAddress(Hex("bus"), device, Hex("function")), withBar ? Hex("bar") : (byte)0);

        byte Hex(string group) => byte.Parse(match.Groups[group].ValueSpan, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);
    }

    [GeneratedRegex("^(?<bus>[0-9a-fA-F]{1,2}):(?<device>[0-9a-fA-F]{1,2})\\.(?<function>[0-7])(/(?<bar>[0-5]))?$", RegexOptions.ExplicitCapture, matchTimeoutMilliseconds: 1000)]
    private static partial Regex PlaceText();
}
