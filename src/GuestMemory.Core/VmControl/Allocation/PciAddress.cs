using System.Globalization;

namespace GuestMemory.Core.VmControl;

/// <summary>Where a PCI function stands.</summary>
/// <param name="Bus">The bus, from 0 to 255.</param>
/// <param name="Device">The device on the bus, from 0 to 31.</param>
/// <param name="Function">The function of the device, from 0 to 7.</param>
public readonly record struct PciAddress(byte Bus, byte Device, byte Function)
{
    /// <summary>As lspci shows it: 00:1f.7.</summary>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Bus:x2}:{Device:x2}.{Function:x}");
}
